"""The published training recipes: what they are, and what they are built of.

`batches`, `augmentation` and `image_folder`, which need TensorFlow for their `tf.data` pipelines,
are imported by themselves.
"""

from keras_deit.losses import MixedLabelBinaryCrossentropy
from keras_deit.training.checkpoint import TrainingCheckpoint
from keras_deit.training.recipes import RECIPES, Augmentation, Recipe

__all__ = [
    "RECIPES",
    "Augmentation",
    "MixedLabelBinaryCrossentropy",
    "Recipe",
    "TrainingCheckpoint",
]
