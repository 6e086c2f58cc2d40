"""Attention maps: where each head of a block looks."""

from typing import Any

import keras
import numpy as np

from keras_deit.arguments import check_choice

TOKENS = ("class", "distillation", "mean")


def attention_maps(
    scores: Any,
    num_prefix_tokens: int,
    grid_size: tuple[int, int],
    token: str = "class",
    num_register_tokens: int = 0,
) -> np.ndarray:
    """Returns the attention of a token to the patches, one map for each head.

    `maps[b, h, row, column] = scores[b, h, token, num_prefix_tokens + row * columns + column]`

    Args:
        scores: array (batch, num_heads, tokens, tokens). The attention scores of one block, such
            as an output of `keras.Model(backbone.input, backbone.attention_scores)`.
        num_prefix_tokens: int. `backbone.num_prefix_tokens`.
        grid_size: (rows, columns). `backbone.grid_size`.
        token: `"class"` or `"distillation"`, the token whose attention is returned; or `"mean"`,
            the mean of all patch tokens, for models without a class token. Defaults to `"class"`.
        num_register_tokens: int. `backbone.num_register_tokens`, which are among the prefix tokens.
            Defaults to 0.

    Returns:
        float array (batch, num_heads, rows, columns). A map sums to less than 1, because the token
        also attends to the prefix tokens.

    Raises:
        ValueError: if the number of tokens is not `num_prefix_tokens + rows * columns`, or the
            model has no such token.

    Example:

    >>> scores = keras.ops.softmax(keras.random.normal((2, 4, 7, 7)))
    >>> maps = keras_deit.visualization.attention_maps(
    ...     scores, num_prefix_tokens=1, grid_size=(2, 3)
    ... )
    >>> maps.shape
    (2, 4, 2, 3)
    """
    scores = check_scores([scores], num_prefix_tokens, grid_size)[0]
    check_token(token, num_prefix_tokens, num_register_tokens)
    maps = attention_of(token, scores, num_prefix_tokens)
    return maps.reshape(*maps.shape[:2], *grid_size)


def check_token(token, num_prefix_tokens, num_register_tokens):
    """Refuses a token that the model lacks."""
    check_choice("token", token, TOKENS)
    others = num_prefix_tokens - num_register_tokens
    if token != "mean" and TOKENS.index(token) >= others:
        instead = "class" if others > 0 else "mean"
        raise ValueError(
            f'The model has no {token} token. Use `token="{instead}"`. Received: token={token!r}, '
            f"num_prefix_tokens={num_prefix_tokens}, num_register_tokens={num_register_tokens}"
        )


def attention_of(token, scores, num_prefix_tokens):
    """The attention of a token to the patches, (..., patches), of scores (..., tokens, tokens)."""
    to_patches = scores[..., num_prefix_tokens:]
    if token == "mean":
        return to_patches[..., num_prefix_tokens:, :].mean(axis=-2)
    return to_patches[..., TOKENS.index(token), :]


def check_scores(scores, num_prefix_tokens, grid_size):
    """Returns the scores of each block as NumPy arrays, or raises if a shape is wrong."""
    if None in grid_size:
        raise ValueError(
            "`grid_size` must be the (rows, columns) of the image's patches. For a backbone that "
            "takes images of any size, use `backbone.grid_size_of(image_size)`. "
            f"Received: grid_size={tuple(grid_size)}"
        )
    num_tokens = num_prefix_tokens + grid_size[0] * grid_size[1]
    if not scores or any(
        len(block.shape) != 4 or tuple(block.shape[2:]) != (num_tokens, num_tokens)
        for block in scores
    ):
        raise ValueError(
            "The scores of each block must have the shape (batch, num_heads, "
            f"{num_tokens}, {num_tokens}), for {num_prefix_tokens} prefix tokens and "
            f"{grid_size[0]} x {grid_size[1]} patches. Use the `num_prefix_tokens` and `grid_size` "
            "of the backbone, and one with `num_merged_tokens=0` and `keep_rate=1.0`: merged and "
            "selected tokens have no place in the image. Received: scores of shapes "
            f"{[tuple(block.shape) for block in scores]}"
        )
    return [keras.ops.convert_to_numpy(block) for block in scores]
