"""The published training recipes: what they are, and what they are built of.

`keras_deit.training.augmentation`, which needs TensorFlow for its `tf.data` pipelines, is imported by itself.
"""

from keras_deit.training.losses import MixedLabelBinaryCrossentropy
from keras_deit.training.recipes import RECIPES, Augmentation, Recipe

__all__ = ["RECIPES", "Augmentation", "MixedLabelBinaryCrossentropy", "Recipe"]
