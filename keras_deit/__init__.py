"""Data-efficient image transformers (DeiT) as Keras layers, models and presets."""

try:
    import keras  # noqa: F401
except ModuleNotFoundError as error:
    if error.name == "keras":
        raise
    raise ModuleNotFoundError(
        "Keras has no backend to run on: `pip install tensorflow`, its default, or install jax or "
        "torch and set KERAS_BACKEND to `jax` or "
        f"`torch` before Python starts. {error}",
        name=error.name,
    ) from error

from keras_deit import layers, losses, models, presets, training, visualization

__version__ = "0.1.0"

__all__ = ["layers", "losses", "models", "presets", "training", "visualization"]
