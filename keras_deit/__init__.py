"""Data-efficient image transformers (DeiT) as Keras layers, models and presets."""

try:
    import keras  # noqa: F401
except ModuleNotFoundError as error:
    if error.name == "keras":
        raise
    raise ModuleNotFoundError(
        "Keras has no backend. Run `pip install tensorflow`, or install jax or torch and set "
        f"KERAS_BACKEND to `jax` or `torch` before Python starts. {error}",
        name=error.name,
    ) from error

from keras_deit import layers, losses, models, presets, quantization, training, visualization

__version__ = "0.2.0"

__all__ = ["layers", "losses", "models", "presets", "quantization", "training", "visualization"]
