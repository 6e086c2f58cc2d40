"""Where each head of a block looks."""

from typing import Any

import keras
import numpy as np

from keras_deit.arguments import check_choice

TOKENS = ("class", "distillation")


def attention_maps(
    scores: Any, num_prefix_tokens: int, grid_size: tuple[int, int], token: str = "class"
) -> np.ndarray:
    """The attention of a prefix token to the patches, head by head.

    `maps[b, h, row, column] = scores[b, h, token, num_prefix_tokens + row * columns + column]`

    Args:
        scores: array (batch, num_heads, tokens, tokens), one block's of
            `keras.Model(backbone.input, backbone.attention_scores)`.
        num_prefix_tokens: int. `backbone.num_prefix_tokens`.
        grid_size: (rows, columns). `backbone.grid_size`.
        token: `"class"` or `"distillation"`, who looks. Defaults to `"class"`.

    Returns:
        float array (batch, num_heads, rows, columns). With those of the prefix tokens the shares of
        a head sum to 1.

    Raises:
        ValueError: another number of tokens than `num_prefix_tokens + rows * columns`, or a token
            that the model lacks.
    """
    scores = check_scores([scores], num_prefix_tokens, grid_size)[0]
    maps = scores[:, :, token_index(token, num_prefix_tokens), num_prefix_tokens:]
    return maps.reshape(*maps.shape[:2], *grid_size)


def token_index(token, num_prefix_tokens):
    check_choice("token", token, TOKENS)
    index = TOKENS.index(token)
    if index >= num_prefix_tokens:
        raise ValueError(
            f'The model has no {token} token. Ask for `token="class"`. '
            f"Received: token={token!r}, num_prefix_tokens={num_prefix_tokens}"
        )
    return index


def check_scores(scores, num_prefix_tokens, grid_size):
    """A list of blocks' scores as NumPy arrays, all over the tokens of one image size."""
    num_tokens = num_prefix_tokens + grid_size[0] * grid_size[1]
    if not scores or any(
        len(block.shape) != 4 or tuple(block.shape[2:]) != (num_tokens, num_tokens)
        for block in scores
    ):
        raise ValueError(
            f"`scores` must have, for each block, an array (batch, num_heads, {num_tokens}, "
            f"{num_tokens}): "
            f"{num_prefix_tokens} prefix tokens and {grid_size[0]} x {grid_size[1]} patches. "
            "Merged tokens have no place in the image: "
            f"use `num_merged_tokens=0`. Received: {[tuple(block.shape) for block in scores]}"
        )
    return [keras.ops.convert_to_numpy(block) for block in scores]
