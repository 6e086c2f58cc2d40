"""Data-efficient image transformers (DeiT) as Keras layers, models and presets."""

from keras_deit import layers, models, presets, training, visualization

__version__ = "0.1.0"

__all__ = ["layers", "models", "presets", "training", "visualization"]
