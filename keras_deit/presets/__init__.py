"""Trained models: the catalog of published ones, and reading, writing and converting weights."""

from keras_deit.presets.handles import find_preset
from keras_deit.presets.imagenet import imagenet_labels, imagenet_synsets
from keras_deit.presets.pytorch.conversion import (
    assign_tensors,
    timm_tensors,
    transformers_tensors,
)
from keras_deit.presets.safetensors_file import read_tensors

__all__ = [
    "assign_tensors",
    "find_preset",
    "imagenet_labels",
    "imagenet_synsets",
    "read_tensors",
    "timm_tensors",
    "transformers_tensors",
]
