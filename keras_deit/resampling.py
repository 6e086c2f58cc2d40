"""Resizes a grid of learned positions: when a preset is loaded, and inside a model."""

from typing import Any

from keras import ops


def resample(
    positions: Any, grid_size: tuple[int, int], new_grid_size: tuple[Any, Any], xp: Any = ops
) -> Any:
    """Resizes positions to another grid: bicubic, and antialiased where the new grid is smaller.

    `grid[:, :, d]` becomes `row_weights @ grid[:, :, d] @ column_weights.T`. Equal to
    `ops.image.resize(..., interpolation="bicubic", antialias=True)`, which exporters do not take.

    Args:
        positions: float32 array (rows * columns, hidden_dim).
        grid_size: (rows, columns) of `positions`.
        new_grid_size: (rows, columns) of the result. In a TensorFlow graph they may be tensors.
        xp: `keras.ops` or `numpy`. Defaults to `keras.ops`.

    Returns:
        float32 array (new rows * new columns, hidden_dim).
    """
    hidden_dim = positions.shape[-1]
    rows, columns = (_weights(size, new, xp) for size, new in zip(grid_size, new_grid_size))
    x = xp.reshape(positions, (grid_size[0], grid_size[1] * hidden_dim))
    x = xp.reshape(xp.matmul(rows, x), (-1, grid_size[1], hidden_dim))
    return xp.reshape(xp.matmul(columns, x), (-1, hidden_dim))


def _weights(size, new_size, xp):
    """(new_size, size): the share of each position along one axis in each new one.

    Reference: [Keys, 1981](https://doi.org/10.1109/TASSP.1981.1163711), the cubic with a = -1/2.
    """
    indices = xp.arange(new_size, dtype="float32")
    # Of new positions, in old ones. `new_size` itself is an int, a tensor or PyTorch's expression.
    spacing = size / (indices[-1] + 1.0)
    centres = (indices + 0.5) * spacing - 0.5
    offsets = centres[:, None] - xp.arange(size, dtype="float32")
    # A smaller grid widens the kernel, so that every old position counts.
    x = xp.abs(offsets) / xp.maximum(spacing, 1.0)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((2.5 - 0.5 * x) * x - 4.0) * x + 2.0
    weights = xp.where(x < 1.0, near, xp.where(x < 2.0, far, 0.0))
    return weights / xp.sum(weights, axis=1, keepdims=True)
