"""Use the backbone in keras-cv's `ImageClassifier`: train its head, save and load the model.

    pip install keras-cv scikit-learn && python examples/keras_cv_classifier.py

No download needed. Writes keras_cv_classifier.keras to the working directory, and prints with
TensorFlow:

    accuracy on unseen digits: 93.6%
    loaded from keras_cv_classifier.keras: outputs are bit-equal
"""

import os

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_cv
import numpy as np
from sklearn.datasets import load_digits

import keras_deit

keras.utils.set_random_seed(0)
digits = load_digits()
images = np.round(digits.images[..., None] * (255 / 16)).astype("uint8")  # raw: 0 to 255
training, test = slice(0, 1437), slice(-360, None)

trained = keras_deit.models.DeiTImageClassifier.from_preset("deit_nano_distilled_patch4_32_digits")
# keras-cv's classifier has no preprocessor, so the images are converted beforehand.
images = keras.ops.convert_to_numpy(trained.preprocessor(images))
# It pools a feature map of shape (batch, rows, columns, channels), so that is the output of the
# backbone here.
backbone = keras.Model(trained.backbone.input, trained.backbone.pyramid_outputs["P2"])
backbone.trainable = False
classifier = keras_cv.models.ImageClassifier(backbone, num_classes=10)
classifier.compile(
    keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", metrics=["accuracy"]
)
classifier.fit(images[training], digits.target[training], batch_size=32, epochs=3, verbose=0)
_, accuracy = classifier.evaluate(images[test], digits.target[test], verbose=0)
print(f"accuracy on unseen digits: {accuracy:.1%}")

probabilities = classifier.predict(images[test], verbose=0)
classifier.save("keras_cv_classifier.keras")
# The loaded model predicts. To continue training, freeze and compile it again: Keras does not save
# which inner layers are frozen.
loaded = keras.saving.load_model("keras_cv_classifier.keras", compile=False)
assert np.array_equal(loaded.predict(images[test], verbose=0), probabilities)
print("loaded from keras_cv_classifier.keras: outputs are bit-equal")
