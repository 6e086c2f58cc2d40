"""Classify handwritten digits with the model that ships inside keras_deit.

Then save and load the model, and draw where it looks.

    pip install ".[tensorflow,examples]" && python examples/quickstart.py

No download needed. Writes quickstart.keras and quickstart.png to the working directory.
"""

import os

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_deit

# Images of 8 x 8 pixels with values from 0 to 16. The model has not seen the last 360 of them.
digits = load_digits()
images = np.round(digits.images[-360:, ..., None] * (255 / 16)).astype("uint8")
labels = digits.target[-360:]

classifier = keras_deit.models.DeiTImageClassifier.from_preset(
    "deit_nano_distilled_patch4_32_digits"
)

# `predict` takes raw images: the preset includes its preprocessing.
logits = classifier.predict(images, verbose=0)

# One head learned from the labels, the other from the teacher. The classifier returns their mean.
heads = keras.Model(classifier.input, classifier.token_logits)
head_logits = heads.predict(classifier.preprocessor(images), verbose=0)
for name, values in (
    ("class head", head_logits["class"]),
    ("distillation head", head_logits["distillation"]),
    ("mean", logits),
):
    correct = int((values.argmax(axis=-1) == labels).sum())
    print(f"{name:<18} {correct / len(labels):6.1%}  ({correct} of {len(labels)})")

classifier.save("quickstart.keras")
loaded = keras.saving.load_model("quickstart.keras")
assert np.array_equal(loaded.predict(images, verbose=0), logits)
print("saved and loaded quickstart.keras: outputs are bit-equal")

# Where the class token looks, through all blocks.
backbone = classifier.backbone
attention = keras.Model(backbone.input, backbone.attention_scores)
scores = attention.predict(classifier.preprocessor(images[:8]), verbose=0)
rollouts = keras_deit.visualization.attention_rollout(
    scores, backbone.num_prefix_tokens, backbone.grid_size
)
predictions = classifier.decode_predictions(logits[:8], top=1)
titles = [f"{label} ({probability:.0%})" for [(label, probability)] in predictions]
figure = keras_deit.visualization.plot_rollouts(images[:8], rollouts, titles)
figure.savefig("quickstart.png", dpi=120)
print("wrote quickstart.png")
