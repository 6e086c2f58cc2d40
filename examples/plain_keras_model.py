"""Use layers of keras_deit between Keras layers: a convolutional stem, then attention.

The model also returns its attention scores.

    pip install ".[tensorflow,examples]" && python examples/plain_keras_model.py

No download needed. Writes plain_keras_model.keras to the working directory, and prints with
TensorFlow:

    accuracy on unseen digits: 88.3%
    loaded: outputs and attention scores are bit-equal
"""

import os

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.datasets import load_digits

from keras_deit import layers

keras.utils.set_random_seed(0)
digits = load_digits()
images = digits.images[..., None]  # (1797, 8, 8, 1), 0 to 16
training, test = slice(0, 1437), slice(-360, None)

inputs = keras.Input((8, 8, 1))
x = keras.layers.Rescaling(1 / 8, offset=-1)(inputs)
x = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(x)
x = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(x)
x = layers.PatchEmbedding(hidden_dim=32, patch_size=2)(x)  # (batch, 16, 32)
# (batch, 17, 32): the class token comes first
x = layers.TokenPositionEmbedding(num_prefix_tokens=1, grid_size=(4, 4))(x)
x = layers.TransformerBlock(num_heads=4, intermediate_dim=64, drop_path_rate=0.1)(x)
x = keras.layers.LayerNormalization(epsilon=1e-6)(x)
last_layer = layers.MultiHeadSelfAttention(num_heads=4, name="last_attention")
x, scores = last_layer(x, return_attention_scores=True)
model = keras.Model(inputs, keras.layers.Dense(10)(x[:, 0]))

loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
model.fit(images[training], digits.target[training], epochs=8, verbose=0)
_, accuracy = model.evaluate(images[test], digits.target[test], verbose=0)
print(f"accuracy on unseen digits: {accuracy:.1%}")

# Any tensor inside the model can be an output, also after loading.
logits, attention = keras.Model(inputs, [model.output, scores]).predict(images[test], verbose=0)
model.save("plain_keras_model.keras")
loaded = keras.saving.load_model("plain_keras_model.keras")
_, scores = loaded.get_layer("last_attention").output
both = keras.Model(loaded.input, [loaded.output, scores]).predict(images[test], verbose=0)
assert np.array_equal(both[0], logits) and np.array_equal(both[1], attention)
print("loaded: outputs and attention scores are bit-equal")
