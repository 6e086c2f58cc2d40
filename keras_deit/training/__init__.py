"""Training recipes, and what they are built of.

The `tf.data` pipelines need TensorFlow, so import their modules directly: `batches`,
`image_folder`, `tfds_images`, `image_reader`, `augmentation`.
"""

from keras_deit.losses import MixedLabelBinaryCrossentropy
from keras_deit.training.checkpoint import TrainingCheckpoint
from keras_deit.training.freezing import freeze_blocks, train_only
from keras_deit.training.recipes import RECIPES, Augmentation, Recipe
from keras_deit.training.soups import GreedySoup, average_weights, greedy_soup

__all__ = [
    "RECIPES",
    "Augmentation",
    "GreedySoup",
    "MixedLabelBinaryCrossentropy",
    "Recipe",
    "TrainingCheckpoint",
    "average_weights",
    "freeze_blocks",
    "greedy_soup",
    "train_only",
]
