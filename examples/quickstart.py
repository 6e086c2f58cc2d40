"""Classifies handwritten digits with the model that ships inside keras_deit, saves it, loads it
elsewhere, and draws its attention.

    pip install ".[tensorflow,examples]" && python examples/quickstart.py

Needs no network. Writes quickstart.keras and quickstart.png to the working directory.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

# Less of TensorFlow's log among what this prints
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_deit

# The digits come as 8 x 8 pixels of 0 to 16. The model was trained on the first 1437; the last 360
# it has never seen.
digits = load_digits()
images = np.round(digits.images[-360:, ..., None] * (255 / 16)).astype("uint8")
labels = digits.target[-360:]

classifier = keras_deit.models.DeiTImageClassifier.from_preset(
    "deit_nano_distilled_patch4_32_digits"
)

# `predict` takes raw images: the preset brings its preprocessing.
logits = classifier.predict(images, verbose=0)

# One head learned from the labels, the other from the teacher; the classifier's output is their
# mean.
heads = keras.Model(classifier.input, classifier.token_logits)
head_logits = heads.predict(classifier.preprocessor(images), verbose=0)
for name, values in (
    ("class head", head_logits["class"]),
    ("distillation head", head_logits["distillation"]),
    ("mean", logits),
):
    correct = int((values.argmax(axis=-1) == labels).sum())
    print(f"{name:<18} {correct / len(labels):6.1%}  ({correct} of {len(labels)})")

# A saved model loads in a process that knows nothing but keras_deit, and gives the same bits.
model_file = pathlib.Path("quickstart.keras")
classifier.save(model_file)
load_and_predict = """
import sys, keras, numpy as np
import keras_deit

model_file, images_file, logits_file = sys.argv[1:]
classifier = keras.saving.load_model(model_file)
np.save(logits_file, classifier.predict(np.load(images_file), verbose=0))
"""
with tempfile.TemporaryDirectory() as folder:
    images_file, logits_file = f"{folder}/images.npy", f"{folder}/logits.npy"
    np.save(images_file, images)
    subprocess.run(
        [sys.executable, "-c", load_and_predict, model_file, images_file, logits_file], check=True
    )
    assert np.array_equal(np.load(logits_file), logits), "the loaded model gives other outputs"
print(f"saved {model_file}, loaded in a second process: outputs are bit-equal")

# Where the class token looks, through all blocks.
chosen = images[:8]
backbone = classifier.backbone
attention = keras.Model(backbone.input, backbone.attention_scores)
scores = attention.predict(classifier.preprocessor(chosen), verbose=0)
rollouts = keras_deit.visualization.attention_rollout(
    scores, backbone.num_prefix_tokens, backbone.grid_size
)
predictions = classifier.decode_predictions(logits[:8], top=1)
titles = [f"{label} ({probability:.0%})" for [(label, probability)] in predictions]
keras_deit.visualization.plot_rollouts(chosen, rollouts, titles).savefig("quickstart.png", dpi=120)
print("wrote quickstart.png")
