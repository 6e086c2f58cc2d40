"""The accuracy of a classifier on images of its classes."""

import numpy as np
from evaluation.batches import check_converter, label_reader, numpy_batches


class Accuracy:
    """A function from a classifier to its accuracy, 0 to 1.

    Args:
        images: `ImageFolder` or `TfdsImages`.
        batch_size: int, number of images per batch.
    """

    def __init__(self, images, batch_size):
        self._images, self._batch_size = images, batch_size

    def __call__(self, classifier):
        check_converter(classifier)
        unreadable, correct = {}, 0
        read = label_reader(classifier, self._images, unreadable)
        # The batches are converted already.
        converter, classifier.preprocessor = classifier.preprocessor, None
        for inputs, labels, weights in numpy_batches(
            self._images, 0, converter, classifier.num_classes, self._batch_size, read
        ):
            outputs = np.asarray(classifier.predict_on_batch(inputs), "float32")
            for reason in unreadable.values():
                raise ValueError(reason)
            hits = outputs.argmax(axis=-1) == labels.argmax(axis=-1)
            correct += int((hits & (weights > 0)).sum())
        classifier.preprocessor = converter
        return correct / len(self._images)
