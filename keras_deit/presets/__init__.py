"""Published and saved models: the catalog, where a handle's files come from, reading and writing directories and checkpoints."""

from keras_deit.presets.checkpoints import assign_tensors, read_tensors, timm_tensors, transformers_tensors
from keras_deit.presets.handles import find_preset

__all__ = ["assign_tensors", "find_preset", "read_tensors", "timm_tensors", "transformers_tensors"]
