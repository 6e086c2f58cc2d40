"""Positions of one grid of patches, seen on another."""

import keras
import numpy as np


def resample_positions(positions, num_prefix_tokens, grid_size, new_grid_size):
    """Resizes learned positions to another grid, bicubic and antialiased; the prefix tokens keep
    theirs.

    Args:
        positions: array (num_prefix_tokens + rows * columns, hidden_dim).
        num_prefix_tokens: int. How many positions at the start are not of patches; 0 with
            `position_scope="patches"`.
        grid_size: (rows, columns) of `positions`.
        new_grid_size: (rows, columns) of the result. Where it is `grid_size`, `positions` comes
            back as it is.

    Returns:
        Array (num_prefix_tokens + new rows * new columns, hidden_dim), of the same dtype.
    """
    if tuple(grid_size) == tuple(new_grid_size):
        return positions
    prefix, patches = positions[:num_prefix_tokens], positions[num_prefix_tokens:]
    hidden_dim = positions.shape[-1]
    grid = patches.reshape(*grid_size, hidden_dim).astype("float32")
    grid = keras.ops.image.resize(
        grid, new_grid_size, interpolation="bicubic", antialias=True, data_format="channels_last"
    )
    patches = keras.ops.convert_to_numpy(grid).reshape(-1, hidden_dim).astype(positions.dtype)
    return np.concatenate([prefix, patches])
