"""Published and saved models: the catalog, where a handle's files come from, reading and writing
directories and checkpoints.
"""

from keras_deit.presets.checkpoints import assign_tensors, timm_tensors, transformers_tensors
from keras_deit.presets.handles import find_preset
from keras_deit.presets.imagenet import imagenet_labels, imagenet_synsets
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
