"""Quantize a classifier to int8: a third of the size, nearly the same predictions.

    pip install ".[tensorflow,examples]" && python examples/int8.py

On a CPU this makes the model smaller, not faster. For speed, export it to OpenVINO: see
benchmarks/README.md. No download needed. Writes the presets float32 and int8 to the working
directory, and prints:

    float32: 97.2% of unseen digits, 836 kB
    int8:    97.2% of unseen digits, 268 kB
    the same digit on 360 of 360, probabilities within 0.05
"""

import os
import pathlib

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.datasets import load_digits

from keras_deit.models import DeiTImageClassifier

digits = load_digits()
# The model has not seen the last 360 digits.
images = np.round(digits.images[-360:, ..., None] * (255 / 16)).astype("uint8")

classifier = DeiTImageClassifier.from_preset("deit_nano_distilled_patch4_32_digits")
classifier.save_to_preset("float32")
# Without `filters`, Keras warns of every layer that it cannot quantize, such as dropout.
classifier.quantize("int8", filters=lambda layer: isinstance(layer, keras.layers.Dense))
classifier.save_to_preset("int8")

probabilities = {}
for name in ("float32", "int8"):
    logits = DeiTImageClassifier.from_preset(name).predict(images, verbose=0)
    probabilities[name] = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
    accuracy = (logits.argmax(axis=-1) == digits.target[-360:]).mean()
    size = sum(file.stat().st_size for file in pathlib.Path(name).iterdir())
    print(f"{name + ':':<8} {accuracy:.1%} of unseen digits, {size / 1000:.0f} kB")
before, after = probabilities.values()
same = (before.argmax(axis=-1) == after.argmax(axis=-1)).sum()
print(
    f"the same digit on {same} of {len(images)}, probabilities within "
    f"{abs(before - after).max():.2f}"
)
