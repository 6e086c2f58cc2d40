"""How much of each patch reaches a prefix token through all blocks."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_deit.arguments import check_choice, check_rate
from keras_deit.visualization.attention_maps import check_scores, token_index

HEAD_FUSIONS: dict[str, Callable] = {"mean": np.mean, "max": np.max, "min": np.min}


def attention_rollout(
    scores: Any,
    num_prefix_tokens: int,
    grid_size: tuple[int, int],
    head_fusion: str = "mean",
    discard_ratio: float = 0.0,
    token: str = "class",
) -> np.ndarray:
    """Follows attention from the class token of the last block back to the patches of the image.

    For each block, `A = fusion over heads of scores`, of which the smallest `discard_ratio` are set
    to 0; `A = A + I`, the identity standing for the residual connection, with rows divided by their
    sums. The rollout is the product `A_last @ ... @ A_0`, of which the token's row over the patches
    is returned.

    Args:
        scores: `{"block_0": (batch, num_heads, tokens, tokens), ...}` from the first block to the
            last, as `keras.Model(backbone.input, backbone.attention_scores)` gives it, or a list of
            such arrays in that order.
        num_prefix_tokens: int. `backbone.num_prefix_tokens`; the first token is the class token.
        grid_size: (rows, columns). `backbone.grid_size`.
        head_fusion: `"mean"` (Abnar & Zuidema), `"max"` or `"min"`, over the heads of a block.
            Defaults to `"mean"`.
        discard_ratio: float in [0, 1). Share of each block's scores, the smallest of each image,
            that counts as none: a picture with less noise. Defaults to 0.0.
        token: `"class"` or `"distillation"`, whose row. Defaults to `"class"`.

    Returns:
        float64 array (batch, rows, columns): the share of each patch. With those of the prefix
        tokens the shares sum to 1.

    Raises:
        ValueError: no scores, another number of tokens than `num_prefix_tokens + rows * columns`, a
            token that the model lacks, or an argument out of range.

    References:
        [Abnar & Zuidema, 2020](https://arxiv.org/abs/2005.00928). Other fusions and the discarding
        are of [vit-explain](https://github.com/jacobgil/vit-explain).
    """
    check_choice("head_fusion", head_fusion, tuple(HEAD_FUSIONS))
    discard_ratio = check_rate("discard_ratio", discard_ratio)
    index = token_index(token, num_prefix_tokens)
    scores = check_scores(_in_order(scores), num_prefix_tokens, grid_size)
    rollout: Any = None
    for block in scores:
        attention = HEAD_FUSIONS[head_fusion](block.astype("float64"), axis=1)  # (B, T, T)
        attention = _without_smallest(attention, discard_ratio) + np.eye(attention.shape[-1])
        attention /= attention.sum(axis=-1, keepdims=True)
        rollout = attention if rollout is None else attention @ rollout
    return rollout[:, index, num_prefix_tokens:].reshape(-1, *grid_size)


def _in_order(scores):
    if not isinstance(scores, dict):
        return list(scores)
    # JAX returns dicts with sorted keys, "block_10" before "block_2".
    names = [f"block_{index}" for index in range(len(scores))]
    if set(names) != set(scores):
        raise ValueError(
            f"`scores` must have the scores of every block, {names}. Received: {list(scores)}"
        )
    return [scores[name] for name in names]


def _without_smallest(attention, ratio):
    """(B, T, T) with the smallest `ratio` of each image at 0."""
    flat = attention.reshape(len(attention), -1)
    smallest = np.argsort(flat, axis=-1, kind="stable")[:, : int(ratio * flat.shape[-1])]
    kept = flat.copy()
    np.put_along_axis(kept, smallest, 0.0, axis=-1)
    return kept.reshape(attention.shape)
