"""Attention maps, attention rollout, filters, positions, and plots of them."""

from keras_deit.images import read_photograph
from keras_deit.visualization.attention_maps import attention_maps
from keras_deit.visualization.attention_model import attention_model
from keras_deit.visualization.attention_rollout import attention_rollout
from keras_deit.visualization.overlays import (
    enlarge,
    overlay,
    plot_filters,
    plot_images,
    plot_overlays,
    plot_position_similarity,
    plot_rollouts,
)
from keras_deit.visualization.weights import patch_filters, position_similarity

__all__ = [
    "attention_maps",
    "attention_model",
    "attention_rollout",
    "enlarge",
    "overlay",
    "patch_filters",
    "plot_filters",
    "plot_images",
    "plot_overlays",
    "plot_position_similarity",
    "plot_rollouts",
    "position_similarity",
    "read_photograph",
]
