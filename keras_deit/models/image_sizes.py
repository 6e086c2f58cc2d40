"""Which images a backbone takes, and which grid its learned positions have."""

from keras_deit.arguments import check_pair, check_positive_int
from keras_deit.data_formats import axes_in_words, grid_size_of, join_image_shape, split_image_shape


def check_image_shape(image_shape, data_format):
    """A tuple of sizes; height and width may both be `None`."""
    if not isinstance(image_shape, (tuple, list)) or len(image_shape) != 3:
        raise ValueError(
            f"`image_shape` must be {axes_in_words(data_format)} for data_format={data_format!r}, "
            "in pixels, such as "
            f"{join_image_shape((224, 224), 3, data_format)}. Received: image_shape={image_shape!r}"
        )
    image_size, channels = split_image_shape(image_shape, data_format)
    unknown = sum(side is None for side in image_size)
    if unknown == 1:
        raise ValueError(
            "`image_shape` must have a height and a width, or `None` for both, which means images "
            f"of any size. Received: image_shape={tuple(image_shape)!r}"
        )
    if not unknown:
        image_size = [check_positive_int("image_shape", side) for side in image_size]
    channels = check_positive_int("image_shape", channels)
    return join_image_shape(image_size, channels, data_format)


def grids(image_shape, patch_size, data_format, position_grid_size, position_scope):
    """The grid of the image's patches and that of the learned positions, (rows, columns) each.

    The image's is `(None, None)` if the size is not known; that of the positions is `None` if there
    are none.
    """
    image_size, _ = split_image_shape(image_shape, data_format)
    grid_size = grid_size_of(image_size, check_pair("patch_size", patch_size))
    if position_scope == "rotary":
        if position_grid_size is not None:
            raise ValueError(
                "`position_grid_size` is for learned positions. Use `None`, or another "
                "`position_scope`. Received: position_scope='rotary', "
                f"position_grid_size={position_grid_size!r}"
            )
        return grid_size, None
    if position_grid_size is not None:
        return grid_size, check_pair("position_grid_size", position_grid_size)
    if None in grid_size:
        raise ValueError(
            "Images of any size need `position_grid_size`, the (rows, columns) of the learned "
            "positions: those of the images that the model is trained on, such as (14, 14) for "
            "224 pixels and patches of 16. "
            f"Received: image_shape={image_shape}, position_grid_size=None"
        )
    return grid_size, grid_size
