"""How much of each patch reaches the class token through all blocks."""

import keras
import numpy as np


def attention_rollout(scores, num_prefix_tokens, grid_size):
    """Follows attention from the class token of the last block back to the patches of the image.

    For each block, `A = (mean over heads of scores + I) / 2`, the identity standing for the residual connection; the rollout is the
    product `A_last @ ... @ A_0`, of which the class token's row over the patches is returned.

    Args:
        scores: `{"block_0": (batch, num_heads, tokens, tokens), ...}` from the first block to the last, as
            `keras.Model(backbone.input, backbone.attention_scores)` gives it, or a list of such arrays in that order.
        num_prefix_tokens: int. `backbone.num_prefix_tokens`; the first token is the class token.
        grid_size: (rows, columns). `backbone.grid_size`.

    Returns:
        float64 array (batch, rows, columns): the share of each patch. With those of the prefix tokens the shares sum to 1.

    Raises:
        ValueError: no scores, or another number of tokens than `num_prefix_tokens + rows * columns`.

    Reference: [Abnar & Zuidema, 2020](https://arxiv.org/abs/2005.00928).
    """
    if isinstance(scores, dict):
        # JAX returns dicts with sorted keys, "block_10" before "block_2".
        names = [f"block_{index}" for index in range(len(scores))]
        if set(names) != set(scores):
            raise ValueError(f"`scores` must have the scores of every block, {names}. Received: {list(scores)}")
        scores = [scores[name] for name in names]
    num_tokens = num_prefix_tokens + grid_size[0] * grid_size[1]
    if not scores or any(len(block.shape) != 4 or block.shape[-1] != num_tokens for block in scores):
        raise ValueError(
            f"`scores` must have, for each block, an array (batch, num_heads, {num_tokens}, {num_tokens}): "
            f"{num_prefix_tokens} prefix tokens and {grid_size[0]} x {grid_size[1]} patches. "
            f"Received: {[tuple(block.shape) for block in scores]}"
        )
    rollout = None
    for block in scores:
        attention = keras.ops.convert_to_numpy(block).astype("float64").mean(axis=1)  # (B, T, T)
        attention = (attention + np.eye(num_tokens)) / 2
        attention /= attention.sum(axis=-1, keepdims=True)
        rollout = attention if rollout is None else attention @ rollout
    return rollout[:, 0, num_prefix_tokens:].reshape(-1, *grid_size)
