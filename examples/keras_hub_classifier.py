"""The backbone inside KerasHub's `ImageClassifier`: a head of KerasHub's learns on it, and all is
saved and loaded.

    pip install keras-hub scikit-learn && python examples/keras_hub_classifier.py

Needs no network. Writes keras_hub_classifier.keras and the KerasHub preset keras_hub_classifier to
the working directory, and prints, with TensorFlow,

    accuracy on unseen digits: 93.6%
    loaded from keras_hub_classifier.keras: outputs are bit-equal
    loaded from the preset keras_hub_classifier: outputs are bit-equal
"""

import os

# Less of TensorFlow's log among what this prints
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_hub
import numpy as np
from sklearn.datasets import load_digits

import keras_deit

keras.utils.set_random_seed(0)
digits = load_digits()
images = np.round(digits.images[..., None] * (255 / 16)).astype("uint8")  # raw: 0 to 255
training, test = slice(0, 1437), slice(-360, None)

trained = keras_deit.models.DeiTImageClassifier.from_preset("deit_nano_distilled_patch4_32_digits")
# KerasHub pools a feature map, (batch, rows, columns, channels), so its backbone is a model of ours
# that ends in one.
backbone = keras.Model(trained.backbone.input, trained.backbone.pyramid_outputs["P2"])
backbone.trainable = False
classifier = keras_hub.models.ImageClassifier(
    backbone, num_classes=10, preprocessor=trained.preprocessor
)
classifier.compile(optimizer=keras.optimizers.Adam(1e-2))
classifier.fit(images[training], digits.target[training], batch_size=32, epochs=3, verbose=0)
# Less than the 97.2% of our own classifier: the tokens that are pooled here were not trained to be
# read.
_, accuracy = classifier.evaluate(images[test], digits.target[test], verbose=0)
print(f"accuracy on unseen digits: {accuracy:.1%}")

# What is loaded predicts. To train it on, freeze and compile it again: neither is in KerasHub's
# files.
logits = classifier.predict(images[test], verbose=0)
classifier.save("keras_hub_classifier.keras")
loaded = keras.saving.load_model("keras_hub_classifier.keras", compile=False)
assert np.array_equal(loaded.predict(images[test], verbose=0), logits)
print("loaded from keras_hub_classifier.keras: outputs are bit-equal")

classifier.save_to_preset("keras_hub_classifier")
loaded = keras_hub.models.ImageClassifier.from_preset("keras_hub_classifier")
assert np.array_equal(loaded.predict(images[test], verbose=0), logits)
print("loaded from the preset keras_hub_classifier: outputs are bit-equal")
