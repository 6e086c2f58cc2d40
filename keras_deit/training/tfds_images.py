"""Images of a TensorFlow Datasets (TFDS) dataset."""

import dataclasses
import os
from typing import ClassVar

from keras_deit.arguments import check_bool


@dataclasses.dataclass(frozen=True)
class TfdsImages:
    """One split of a TFDS dataset of labelled images, not decoded yet.

    Args:
        builder: `tfds.core.DatasetBuilder` whose data is prepared.
        split: name of the split.
    """

    builder: object
    split: str
    are_files: ClassVar = False  # `dataset` yields encoded images
    skipped: ClassVar = ()

    @classmethod
    def open(cls, name, training=False):
        """Prepares a dataset, downloading it if needed.

        Args:
            name: TFDS name such as `"cifar10"`.
            training: whether to use the split `train`. Otherwise the split is `validation`, or
                `test` if there is none. Defaults to `False`.

        Raises:
            ValueError: if tensorflow-datasets is not installed, the dataset has no such split or no
                single class per image, or its files must be downloaded by hand.
        """
        training = check_bool("training", training)
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise ValueError(
                f"Reading the dataset {name} needs TensorFlow Datasets: `pip install "
                "tensorflow-datasets`."
            ) from error
        builder = tfds.builder(name)
        label = (builder.info.supervised_keys or (None, None))[1]
        if label is None or not isinstance(builder.info.features[label], tfds.features.ClassLabel):
            raise ValueError(
                f"Expected a dataset of images with one class each. Received: {name} with "
                f"{builder.info.features}"
            )
        try:
            builder.download_and_prepare()
        except AssertionError as error:  # TFDS explains how to download the files by hand
            raise ValueError(str(error)) from error
        splits = ("train",) if training else ("validation", "test")
        for split in splits:
            if split in builder.info.splits:
                return cls(builder, split)
        raise ValueError(
            f"The dataset {name} must have a split `{'` or `'.join(splits)}`. Received: "
            f"{', '.join(builder.info.splits)}"
        )

    def __len__(self):
        return self.builder.info.splits[self.split].num_examples

    @property
    def class_names(self):
        _, label = self.builder.info.supervised_keys
        return tuple(self.builder.info.features[label].names)

    @property
    def identity(self):
        """Name, version and split, such as `cifar10/3.0.2:test`."""
        return f"{self.builder.info.full_name}:{self.split}"

    def dataset(self):
        """`tf.data.Dataset` of (number, encoded image, label), to decode with `image_reader`."""
        image, label = self.builder.info.supervised_keys
        dataset = self._undecoded().enumerate()
        return dataset.map(lambda number, element: (number, element[image], element[label]))

    def file_names(self):
        """Names of the original files if the dataset has them; this reads all of it."""
        if "file_name" not in self.builder.info.features:
            return tuple(f"{self.identity}[{number}]" for number in range(len(self)))
        names = self._undecoded().map(lambda element: element["file_name"])
        return tuple(map(os.fsdecode, names.as_numpy_iterator()))

    def _undecoded(self):
        import tensorflow_datasets as tfds

        image, _ = self.builder.info.supervised_keys
        # In the order of the files: `training_batches` shuffles, and can resume.
        return self.builder.as_dataset(
            split=self.split, decoders={image: tfds.decode.SkipDecoding()}, shuffle_files=False
        )
