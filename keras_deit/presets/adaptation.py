"""Trained weights for another image size, another number of channels, or one more prefix token."""

import math

import numpy as np
from absl import logging

from keras_deit.presets.layout import layout
from keras_deit.presets.positions import resample_positions

KERNEL = "patch_embedding/projection/kernel"
PREFIX_TOKENS = "token_position_embedding/prefix_tokens"
POSITIONS = "token_position_embedding/positions"


def adapt_backbone(state, saved_config, config, source):
    """Changes the `state` of a backbone with `saved_config` into what one with `config` wants, and
    returns it.

    Positions are resampled to the new grid. The patch kernel sums its channels for one channel, and
    repeats them, scaled to keep the size of the sum, for other numbers. A distillation token that
    was not trained starts as the class token, which a log line says. Whatever else differs stays as
    it is, for `weights.assign` to refuse.
    """
    (grid, channels, prefix), (new_grid, new_channels, new_prefix) = (
        layout(saved_config),
        layout(config),
    )
    scope_is_all = saved_config.get("position_scope", "all") == "all"
    state[POSITIONS] = resample_positions(
        state[POSITIONS], prefix if scope_is_all else 0, grid, new_grid
    )
    if channels != new_channels:
        state[KERNEL] = _adapt_channels(state[KERNEL], channels, new_channels)
    if (prefix, new_prefix) == (1, 2):
        logging.warning(
            "The distillation token is not trained: the %s has none, so it starts as the class "
            "token.",
            source,
        )
        state[PREFIX_TOKENS] = np.repeat(state[PREFIX_TOKENS], 2, axis=0)
        if scope_is_all:
            state[POSITIONS] = np.concatenate([state[POSITIONS][:1], state[POSITIONS]])
    return state


def adapt_head(state, source):
    """`state` of one head as two want it: the distillation head starts as the class head, which a
    log line says.
    """
    logging.warning(
        "The distillation head is not trained: the %s has one head, of which it starts as a copy.",
        source,
    )
    names = {path.removeprefix("head/"): array for path, array in state.items()}
    return {
        f"head/{head}/{name}": array
        for head in ("class_head", "distillation_head")
        for name, array in names.items()
    }


def _adapt_channels(kernel, channels, new_channels):
    """(pixels * channels, D) to (pixels * new_channels, D), as timm adapts its first
    convolution.
    """
    kernel = kernel.reshape(-1, channels, kernel.shape[-1])
    if new_channels == 1:
        kernel = kernel.sum(axis=1, keepdims=True)
    else:
        repeats = math.ceil(new_channels / channels)
        kernel = np.tile(kernel, (1, repeats, 1))[:, :new_channels] * (channels / new_channels)
    return kernel.reshape(-1, kernel.shape[-1])
