"""What a trained backbone has learnt of patches and of where they are."""

from typing import Any

import keras
import numpy as np


def patch_filters(backbone: Any) -> np.ndarray:
    """The principal components of the patch embedding: the patterns that tell patches apart, from
    the strongest.

    They are the right singular vectors of the kernel (hidden_dim, patch values), its mean over
    `hidden_dim` taken off. Of the filters themselves there are as many as the embedding is wide,
    and most look alike.

    Args:
        backbone: `DeiTBackbone`.

    Returns:
        float array (components, patch height, patch width, channels): orthogonal, each of length 1.

    Reference: [Dosovitskiy et al., 2021](https://arxiv.org/abs/2010.11929), figure 7, left.
    """
    kernel = (
        keras.ops.convert_to_numpy(backbone.patch_embedding.projection.kernel).astype("float64").T
    )
    components = np.linalg.svd(kernel - kernel.mean(axis=0), full_matrices=False)[2]
    return components.reshape(len(components), *backbone.patch_size, -1)


def position_similarity(backbone: Any) -> np.ndarray:
    """How alike the positions of any two patches are.

    Args:
        backbone: `DeiTBackbone`.

    Returns:
        float array (rows, columns, rows, columns): `[i, j, k, l]` is the cosine, from -1 to 1, of
        the position embeddings of the patches `(i, j)` and `(k, l)`.

    Reference: [Dosovitskiy et al., 2021](https://arxiv.org/abs/2010.11929), figure 7, centre.
    """
    rows, columns = backbone.grid_size
    # Those of prefix tokens, where they have positions, come first.
    positions = keras.ops.convert_to_numpy(backbone.token_position_embedding.positions)[
        -rows * columns :
    ].astype("float64")
    positions /= np.linalg.norm(positions, axis=-1, keepdims=True)
    return (positions @ positions.T).reshape(rows, columns, rows, columns)
