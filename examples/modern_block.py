"""Compose the blocks of DINOv2 and DINOv3 from the layers of keras_deit and Keras.

    pip install ".[tensorflow]" && python examples/modern_block.py

No download needed. Writes dinov2.keras and dinov3.keras to the working directory, and prints:

    dinov2: (2, 11, 64), loaded outputs are bit-equal
    dinov3: (2, 11, 64), loaded outputs are bit-equal
"""

import os

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from keras_deit import layers

HEADS, DIM, PREFIX = 4, 64, 1 + 4  # a class token and four register tokens


def branch(x, layer, **kwargs):
    """One residual branch: pre-norm, LayerScale, stochastic depth."""
    y = layer(keras.layers.LayerNormalization(epsilon=1e-6)(x), **kwargs)
    return x + layers.DropPath(0.1)(layers.LayerScale(1e-5)(y))


images = keras.Input((32, 48, 3))
patches = layers.PatchEmbedding(DIM, patch_size=16, flatten=False)(images)  # (batch, 2, 3, 64)

# DINOv2: learned positions, MLP with GELU
x = layers.TokenPositionEmbedding(PREFIX, grid_size=(2, 3))(patches)  # (batch, 11, 64)
x = branch(x, layers.MultiHeadSelfAttention(HEADS))
dinov2 = keras.Model(images, branch(x, layers.MLP(4 * DIM)), name="dinov2")

# DINOv3: rotary positions, SwiGLU
x = layers.TokenPositionEmbedding(PREFIX, grid_size=(2, 3), position_scope="none")(patches)
rotation = layers.RotaryPositionEmbedding(DIM // HEADS, PREFIX)(patches)
x = branch(x, layers.MultiHeadSelfAttention(HEADS), rotation=rotation)
swiglu = layers.MLP(3 * DIM, activation="silu", use_gate=True)
dinov3 = keras.Model(images, branch(x, swiglu), name="dinov3")

pixels = np.random.default_rng(0).normal(size=(2, 32, 48, 3)).astype("float32")
for model in (dinov2, dinov3):
    outputs = model.predict(pixels, verbose=0)
    model.save(f"{model.name}.keras")
    loaded = keras.saving.load_model(f"{model.name}.keras")
    assert np.array_equal(loaded.predict(pixels, verbose=0), outputs)
    print(f"{model.name}: {outputs.shape}, loaded outputs are bit-equal")
