"""Layers of this package between Keras' own: a convolutional stem, then tokens, then attention
whose scores come out beside the answer.

    pip install ".[tensorflow,examples]" && python examples/plain_keras_model.py

Needs no network. Writes plain_keras_model.keras to the working directory, and prints, with
TensorFlow,

    accuracy on unseen digits: 88.3%
    loaded in a second process: outputs and attention scores are bit-equal
"""

import os
import subprocess
import sys
import tempfile

# Less of TensorFlow's log among what this prints
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.datasets import load_digits

from keras_deit.layers import (
    MultiHeadSelfAttention,
    PatchEmbedding,
    TokenPositionEmbedding,
    TransformerBlock,
)

keras.utils.set_random_seed(0)
digits = load_digits()
images = digits.images[..., None]  # (1797, 8, 8, 1), 0 to 16
training, test = slice(0, 1437), slice(-360, None)

inputs = keras.Input((8, 8, 1))
x = keras.layers.Rescaling(1 / 8, offset=-1)(inputs)
x = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(x)
x = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(x)
x = PatchEmbedding(hidden_dim=32, patch_size=2)(x)  # (batch, 16, 32)
# (batch, 17, 32): the class token first
x = TokenPositionEmbedding(num_prefix_tokens=1, grid_size=(4, 4))(x)
x = TransformerBlock(num_heads=4, intermediate_dim=64, drop_path_rate=0.1)(x)
x = keras.layers.LayerNormalization(epsilon=1e-6)(x)
x, scores = MultiHeadSelfAttention(num_heads=4, name="last_look")(x, return_attention_scores=True)
model = keras.Model(inputs, keras.layers.Dense(10)(x[:, 0]))

model.compile(
    keras.optimizers.Adam(3e-3),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
model.fit(images[training], digits.target[training], epochs=8, verbose=0)
_, accuracy = model.evaluate(images[test], digits.target[test], verbose=0)
print(f"accuracy on unseen digits: {accuracy:.1%}")

# A symbolic tensor on the way is an output like any other, here and after loading.
logits, looks = keras.Model(inputs, [model.output, scores]).predict(images[test], verbose=0)
model.save("plain_keras_model.keras")
load_and_predict = """
import sys, keras, numpy as np
import keras_deit

model = keras.saving.load_model("plain_keras_model.keras")
_, scores = model.get_layer("last_look").output
logits, looks = keras.Model(model.input, [model.output, scores]).predict(np.load(sys.argv[1]), verbose=0)
np.savez(sys.argv[2], logits=logits, looks=looks)
"""
with tempfile.TemporaryDirectory() as folder:
    np.save(f"{folder}/images.npy", images[test])
    arguments = [f"{folder}/images.npy", f"{folder}/outputs.npz"]
    subprocess.run([sys.executable, "-c", load_and_predict, *arguments], check=True)
    with np.load(f"{folder}/outputs.npz") as loaded:
        assert np.array_equal(loaded["logits"], logits) and np.array_equal(loaded["looks"], looks)
print("loaded in a second process: outputs and attention scores are bit-equal")
