"""What the patch embedding and the position embeddings of a backbone have learned."""

from typing import Any

import keras
import numpy as np


def patch_filters(backbone: Any) -> np.ndarray:
    """Returns the principal components of the patch embedding's filters, strongest first.

    They are the right singular vectors of the kernel (hidden_dim, patch values) after its mean over
    `hidden_dim` is subtracted. The patch embedding has `hidden_dim` filters, and many look alike;
    the first components summarize them.

    Args:
        backbone: `DeiTBackbone`.

    Returns:
        float array (components, patch height, patch width, channels). The components are orthogonal
        unit vectors.

    Example:

    >>> backbone = keras_deit.models.DeiTBackbone.from_preset(
    ...     "deit_nano_distilled_patch4_32_digits"
    ... )
    >>> keras_deit.visualization.patch_filters(backbone).shape
    (16, 4, 4, 1)

    Reference: [Dosovitskiy et al., 2021](https://arxiv.org/abs/2010.11929), figure 7, left.
    """
    kernel = (
        keras.ops.convert_to_numpy(backbone.patch_embedding.projection.kernel).astype("float64").T
    )
    components = np.linalg.svd(kernel - kernel.mean(axis=0), full_matrices=False)[2]
    return components.reshape(len(components), *backbone.patch_size, -1)


def position_similarity(backbone: Any) -> np.ndarray:
    """Returns the cosine similarity of the position embeddings of all pairs of patches.

    Args:
        backbone: `DeiTBackbone`.

    Returns:
        float array (rows, columns, rows, columns), -1 to 1. `[i, j, k, l]` compares the patches
        `(i, j)` and `(k, l)`.

    Raises:
        ValueError: if the backbone has no learned positions.

    Example:

    >>> backbone = keras_deit.models.DeiTBackbone.from_preset(
    ...     "deit_nano_distilled_patch4_32_digits"
    ... )
    >>> keras_deit.visualization.position_similarity(backbone).shape
    (8, 8, 8, 8)

    Reference: [Dosovitskiy et al., 2021](https://arxiv.org/abs/2010.11929), figure 7, centre.
    """
    if backbone.position_grid_size is None:
        raise ValueError(
            "`position_similarity` needs a backbone with learned positions. Received: "
            f"position_scope={backbone.position_scope!r}"
        )
    rows, columns = backbone.position_grid_size
    # The positions of prefix tokens, if they have any, come first.
    positions = keras.ops.convert_to_numpy(backbone.token_position_embedding.positions)[
        -rows * columns :
    ].astype("float64")
    positions /= np.linalg.norm(positions, axis=-1, keepdims=True)
    return (positions @ positions.T).reshape(rows, columns, rows, columns)
