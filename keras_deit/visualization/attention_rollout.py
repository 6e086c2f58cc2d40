"""Attention rollout: how much each patch contributes to a token over all blocks."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_deit.arguments import check_choice, check_rate
from keras_deit.visualization.attention_maps import attention_of, check_scores, check_token

HEAD_FUSIONS: dict[str, Callable] = {"mean": np.mean, "max": np.max, "min": np.min}


def attention_rollout(
    scores: Any,
    num_prefix_tokens: int,
    grid_size: tuple[int, int],
    head_fusion: str = "mean",
    discard_ratio: float = 0.0,
    token: str = "class",
    num_register_tokens: int = 0,
) -> np.ndarray:
    """Returns how much each patch contributes to a token over all blocks.

    The rule, for the scores of each block:

    1. `A = head_fusion(scores)`, over the heads. The smallest `discard_ratio` of `A` become 0.
    2. `A = A + I`, for the residual connection. Each row is divided by its sum.

    The rollout is the product `A_last @ ... @ A_0`. The result is the row of the token, without the
    columns of the prefix tokens.

    Args:
        scores: `{"block_0": (batch, num_heads, tokens, tokens), ...}`, the output of
            `keras.Model(backbone.input, backbone.attention_scores)`; or a list of such arrays, from
            the first block to the last.
        num_prefix_tokens: int. `backbone.num_prefix_tokens`.
        grid_size: (rows, columns). `backbone.grid_size`.
        head_fusion: `"mean"`, `"max"` or `"min"`. How to combine the heads of a block. Defaults to
            `"mean"`.
        discard_ratio: float in [0, 1). Fraction of the scores of each block and image to set to 0,
            the smallest first. A higher value gives less noise. Defaults to 0.0.
        token: `"class"`, `"distillation"`, or `"mean"`, the mean of all patch tokens, for models
            without a class token. Defaults to `"class"`.
        num_register_tokens: int. `backbone.num_register_tokens`, which are among the prefix tokens.
            Defaults to 0.

    Returns:
        float64 array (batch, rows, columns). A map sums to less than 1, because prefix tokens
        contribute, too.

    Raises:
        ValueError: if `scores` lacks a block, the number of tokens is not
            `num_prefix_tokens + rows * columns`, the model has no such token, or an argument is out
            of range.

    Example:

    >>> scores = [keras.ops.softmax(keras.random.normal((2, 4, 7, 7))) for _ in range(3)]
    >>> rollout = keras_deit.visualization.attention_rollout(
    ...     scores, num_prefix_tokens=1, grid_size=(2, 3)
    ... )
    >>> rollout.shape
    (2, 2, 3)

    References:
        [Abnar & Zuidema, 2020](https://arxiv.org/abs/2005.00928), with `head_fusion="mean"` and
        `discard_ratio=0`; [vit-explain](https://github.com/jacobgil/vit-explain) for the other
        values.
    """
    check_choice("head_fusion", head_fusion, tuple(HEAD_FUSIONS))
    discard_ratio = check_rate("discard_ratio", discard_ratio)
    check_token(token, num_prefix_tokens, num_register_tokens)
    scores = check_scores(_in_order(scores), num_prefix_tokens, grid_size)
    rollout: Any = None
    for block in scores:
        attention = HEAD_FUSIONS[head_fusion](block.astype("float64"), axis=1)  # (B, T, T)
        attention = _without_smallest(attention, discard_ratio) + np.eye(attention.shape[-1])
        attention /= attention.sum(axis=-1, keepdims=True)
        rollout = attention if rollout is None else attention @ rollout
    return attention_of(token, rollout, num_prefix_tokens).reshape(-1, *grid_size)


def _in_order(scores):
    if not isinstance(scores, dict):
        return list(scores)
    # JAX sorts the keys of a dict: "block_10" comes before "block_2".
    names = [f"block_{index}" for index in range(len(scores))]
    if set(names) != set(scores):
        raise ValueError(
            f"`scores` must have one entry for each block, {names}. Pass the scores of all "
            f"blocks, or a list in the order of the blocks. Received: {list(scores)}"
        )
    return [scores[name] for name in names]


def _without_smallest(attention, ratio):
    """Sets the smallest `ratio` of the scores of each image to 0, (B, T, T)."""
    flat = attention.reshape(len(attention), -1)
    smallest = np.argsort(flat, axis=-1, kind="stable")[:, : int(ratio * flat.shape[-1])]
    kept = flat.copy()
    np.put_along_axis(kept, smallest, 0.0, axis=-1)
    return kept.reshape(attention.shape)
