"""Trained weights, adapted to another image size, patch size, number of channels or number of
prefix tokens.
"""

import math

import keras
import numpy as np
from absl import logging

from keras_deit.arguments import as_pair
from keras_deit.presets import architecture
from keras_deit.presets.tensor_values import is_float
from keras_deit.resampling import resample

KERNEL = "patch_embedding/projection/kernel"
PREFIX_TOKENS = "token_position_embedding/prefix_tokens"
POSITIONS = "token_position_embedding/positions"


def adapt_backbone(state, saved_config, backbone, source):
    """Adapts the weights of a saved backbone to another one, in place, and returns them.

    - Positions are resampled to the new grid.
    - The patch kernel adapts to another patch size as FlexiViT's does, and to other channels as
      timm's does: summed for one channel, otherwise repeated and scaled.
    - A distillation token that the preset lacks starts as the class token, with a warning.

    Other differences stay, and `weights.assign` refuses them.

    Args:
        state: {variable path: array}.
        saved_config: dict, the arguments of the saved backbone.
        backbone: the new `DeiTBackbone`.
        source: name of the preset in warnings.
    """
    has_prefix_positions = backbone.position_scope == "all"
    if POSITIONS in state:
        state[POSITIONS] = resample_positions(
            state[POSITIONS],
            architecture.num_prefix_tokens(saved_config) if has_prefix_positions else 0,
            architecture.position_grid_size(saved_config),
            backbone.position_grid_size,
        )
    if is_float(state[KERNEL].dtype):  # quantized kernels do not adapt
        num_channels = architecture.num_channels(saved_config)
        if num_channels != backbone.num_channels:
            state[KERNEL] = _adapt_channels(state[KERNEL], num_channels, backbone.num_channels)
        state[KERNEL] = resize_patches(
            state[KERNEL], as_pair(saved_config["patch_size"]), backbone.patch_size
        )
    if backbone.use_distillation_token and not saved_config.get("use_distillation_token"):
        logging.warning(
            "The distillation token is not trained: the %s has none, so it starts as a copy of "
            "the class token.",
            source,
        )
        state[PREFIX_TOKENS] = np.concatenate([state[PREFIX_TOKENS][:1], state[PREFIX_TOKENS]])
        if has_prefix_positions:
            state[POSITIONS] = np.concatenate([state[POSITIONS][:1], state[POSITIONS]])
    return state


def adapt_head(state, source):
    """The weights of one head as those of two: the distillation head starts as a copy."""
    logging.warning(
        "The distillation head is not trained: the %s has one head, and the distillation head "
        "starts as a copy of it.",
        source,
    )
    names = {path.removeprefix("head/"): array for path, array in state.items()}
    return {
        f"head/{head}/{name}": array
        for head in ("class_head", "distillation_head")
        for name, array in names.items()
    }


def resample_positions(positions, num_prefix_tokens, grid_size, new_grid_size):
    """Resizes learned positions to another grid: bicubic, antialiased.

    Args:
        positions: array (num_prefix_tokens + rows * columns, hidden_dim).
        num_prefix_tokens: int. How many positions at the start belong to prefix tokens and stay as
            they are; 0 with `position_scope="patches"`.
        grid_size: (rows, columns) of `positions`.
        new_grid_size: (rows, columns) of the result. The same grid returns `positions` unchanged.

    Returns:
        Array (num_prefix_tokens + new rows * new columns, hidden_dim) of the same dtype.
    """
    if tuple(grid_size) == tuple(new_grid_size):
        return positions
    prefix, patches = positions[:num_prefix_tokens], positions[num_prefix_tokens:]
    patches = resample(patches.astype("float32"), grid_size, new_grid_size, xp=np)
    return np.concatenate([prefix, patches.astype(positions.dtype)])


def resize_patches(kernel, patch_size, new_patch_size):
    """Resizes the kernel of a patch embedding to another patch size, by the pseudo-inverse.

    The new kernel gives a resized patch the token that the old kernel gives the patch: exactly for
    larger patches, and as closely as possible for smaller ones. A patch is resized bilinearly.

    Args:
        kernel: array (height * width * channels, hidden_dim).
        patch_size: (height, width) of `kernel`, in pixels.
        new_patch_size: (height, width) of the result. The same size returns `kernel` unchanged.

    Returns:
        Array (new height * new width * channels, hidden_dim) of the same dtype.

    Reference: [Beyer et al., 2023](https://arxiv.org/abs/2212.08013) (FlexiViT), section 3.4.
    """
    if tuple(patch_size) == tuple(new_patch_size):
        return kernel
    rows, columns = (
        np.linalg.pinv(_resize_matrix(size, new_size).T)
        for size, new_size in zip(patch_size, new_patch_size)
    )
    hidden_dim = kernel.shape[-1]
    patches = kernel.reshape(*patch_size, -1, hidden_dim).astype("float64")
    # The resize acts on rows and columns separately, and so does its pseudo-inverse.
    patches = np.einsum("ah,bw,hwcd->abcd", rows, columns, patches, optimize=True)
    return patches.reshape(-1, hidden_dim).astype(kernel.dtype)


def _resize_matrix(size, new_size):
    """(new_size, size): what a bilinear resize does along one axis."""
    unit_vectors = np.eye(size, dtype="float32")[:, :, None, None]  # as `size` images of one column
    resized = keras.ops.image.resize(
        unit_vectors, (new_size, 1), interpolation="bilinear", data_format="channels_last"
    )
    return keras.ops.convert_to_numpy(resized)[:, :, 0, 0].T.astype("float64")


def _adapt_channels(kernel, channels, new_channels):
    """(pixels * channels, D) to (pixels * new_channels, D), as timm adapts a convolution."""
    kernel = kernel.reshape(-1, channels, kernel.shape[-1])
    if new_channels == 1:
        kernel = kernel.sum(axis=1, keepdims=True)
    else:
        repeats = math.ceil(new_channels / channels)
        kernel = np.tile(kernel, (1, repeats, 1))[:, :new_channels] * (channels / new_channels)
    return kernel.reshape(-1, kernel.shape[-1])
