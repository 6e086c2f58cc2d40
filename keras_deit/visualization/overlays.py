"""Pictures of images with what the model looks at laid over them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_PALETTE = "viridis"  # no orange or red, which flowers and fur have


def overlay(
    image: Any, shares: Any, box: Any = None, strength: float = 0.6, largest: float | None = None
) -> np.ndarray:
    """Lays a map of patches over an image, at the size of the image.

    Args:
        image: array (height, width, channels) of 1 or 3 channels, 0 to 255.
        shares: array (rows, columns), such as one of `attention_rollout`'s. Nothing is drawn
            darkest, `largest` brightest.
        box: (top, left, height, width) of what the model saw, in pixels of the image:
            `converter.crop_box(height, width)`. The map fades out towards its edges, and the rest
            of the image stays as it is. Defaults to the whole image.
        strength: float in [0, 1]. How much the map covers. Defaults to 0.6.
        largest: float. The share that is drawn brightest. Defaults to that of the map, and at least
            to three times the mean: attention that is spread evenly is drawn evenly.

    Returns:
        uint8 array (height, width, 3).

    Raises:
        ValueError: `image` or `shares` has another shape.
        ImportError: matplotlib is not installed.
    """
    # On demand: only pictures need them.
    import matplotlib
    from PIL import Image

    picture, shares = _rgb(image), np.asarray(shares, "float32")
    if shares.ndim != 2:
        raise ValueError(
            "`shares` must be one map, (rows, columns): take one image's, and one head's. "
            f"Received: shape {shares.shape}"
        )
    height, width = picture.shape[:2]
    top, left, box_height, box_width = box or (0, 0, height, width)
    # Whole pixels: a crop that ends inside one takes it.
    top, bottom = max(0, round(top)), min(height, max(round(top) + 1, round(top + box_height)))
    left, right = max(0, round(left)), min(width, max(round(left) + 1, round(left + box_width)))
    stretched = shares / (largest or _largest([shares]))
    heat = Image.fromarray(stretched).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    colours = matplotlib.colormaps[_PALETTE](np.asarray(heat).clip(0, 1))[..., :3] * 255
    seen = picture[top:bottom, left:right]
    covered = (
        strength * np.outer(_fading(top, bottom, height), _fading(left, right, width))[..., None]
    )
    picture[top:bottom, left:right] = np.rint((1 - covered) * seen + covered * colours)
    return picture


def _largest(maps):
    """The share that is drawn brightest in all of these maps."""
    return max(
        max(np.max(shares), 3 * np.mean(shares), np.finfo("float32").tiny) for shares in maps
    )


def _fading(start, end, size):
    """(end - start) factors from 0 to 1: less towards an edge that the image goes on beyond, over a
    twentieth of the length.
    """
    places = np.arange(start, end) + 0.5
    ramp = max(1.0, (end - start) / 20)
    inwards = np.ones(end - start)
    if start > 0:
        inwards = np.minimum(inwards, (places - start) / ramp)
    if end < size:
        inwards = np.minimum(inwards, (end - places) / ramp)
    return inwards


def enlarge(image: Any, least: int = 256) -> np.ndarray:
    """Repeats the pixels of a small image, so that a map that is laid over it is smooth.

    Args:
        image: array (height, width, channels).
        least: int. Pixels that both sides have at least, after. Defaults to 256.

    Returns:
        array (n * height, n * width, channels) with the smallest whole n.
    """
    times = -(-least // min(image.shape[:2]))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def plot_images(images: Any, titles: Sequence[str] | None = None, columns: int = 4) -> Any:
    """Draws images side by side, each at its own aspect.

    Args:
        images: sequence of arrays (height, width, channels) of 1 or 3 channels, 0 to 255.
        titles: sequence of strings, one for each image. Defaults to none.
        columns: int. Images in a row. Defaults to 4.

    Returns:
        `matplotlib.figure.Figure`; `figure.savefig(file)` writes it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    columns = min(columns, len(images))
    figure, axes = _figure(
        len(images), columns, width=10 / columns, height=10 / columns * _tallest(images) + 0.3
    )
    for axis, image in zip(axes.flat, images):
        axis.imshow(_rgb(image))
    for axis, title in zip(axes.flat, titles or ()):
        axis.set_title(title, fontsize=9)
    return figure


def plot_overlays(
    images: Any, maps: Any, titles: Sequence[str] | None = None, box: Any = None, columns: int = 4
) -> Any:
    """Draws images side by side with their maps laid over, all on one scale, with its colour bar.

    Args:
        images: sequence of arrays (height, width, channels) of 1 or 3 channels, 0 to 255.
        maps: sequence of arrays (rows, columns), one for each image, such as one head's of
            `attention_maps`; `None` for an image alone.
        titles: sequence of strings, one for each image. Defaults to none.
        box: as of `overlay`, of all images.
        columns: int. Images in a row. Defaults to 4.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    largest = _largest([shares for shares in maps if shares is not None])
    drawn = [
        image if shares is None else overlay(image, shares, box, largest=largest)
        for image, shares in zip(images, maps)
    ]
    figure = plot_images(drawn, titles, columns)
    _add_colour_bar(figure, largest)
    return figure


def plot_rollouts(images: Any, rollouts: Any, titles: Sequence[str], columns: int = 8) -> Any:
    """Draws each image, and below it the image with its rollout laid over, all on one scale, with
    its colour bar.

    Args:
        images: array (batch, height, width, channels) of 1 or 3 channels, 0 to 255.
        rollouts: array (batch, rows, columns), as `attention_rollout` returns it.
        titles: sequence of strings, one for each image.
        columns: int. Images in a row. Defaults to 8.

    Returns:
        `matplotlib.figure.Figure`; `figure.savefig(file)` writes it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    rows, largest = -(-len(images) // columns), _largest(rollouts)
    figure, axes = _figure(2 * rows * columns, columns, width=1.4, height=1.6)
    for index, (image, rollout, title) in enumerate(zip(images, rollouts, titles)):
        row, column = divmod(index, columns)
        image = enlarge(_rgb(image))
        axes[2 * row, column].imshow(image)
        axes[2 * row, column].set_title(title, fontsize=9)
        axes[2 * row + 1, column].imshow(overlay(image, rollout, largest=largest))
    _add_colour_bar(figure, largest)
    return figure


def _add_colour_bar(figure, largest):
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import PercentFormatter

    scale = ScalarMappable(Normalize(0, largest), cmap=_PALETTE)
    bar = figure.colorbar(
        scale,
        ax=figure.axes,
        shrink=0.7,
        label="share of the attention",
        format=PercentFormatter(1),
    )
    bar.ax.tick_params(labelsize=8)


def plot_filters(filters: Any, columns: int = 7) -> Any:
    """Draws patch filters, as `patch_filters` returns them, each stretched over all levels.

    Args:
        filters: array (filters, height, width, channels) of 1 or 3 channels.
        columns: int. Filters in a row. Defaults to 7.

    Returns:
        `matplotlib.figure.Figure`; `figure.savefig(file)` writes it.

    Raises:
        ValueError: filters of another number of channels, which have no colour.
        ImportError: matplotlib is not installed.
    """
    if filters.shape[-1] not in (1, 3):
        raise ValueError(
            f"Filters of 1 or 3 channels have a colour. Received: filters of shape {filters.shape}"
        )
    lowest, highest = (
        filters.min(axis=(1, 2, 3), keepdims=True),
        filters.max(axis=(1, 2, 3), keepdims=True),
    )
    figure, axes = _figure(len(filters), columns, width=0.9, height=0.9)
    for axis, image in zip(axes.flat, 255 * (filters - lowest) / (highest - lowest)):
        axis.imshow(_rgb(image))
    return figure


def plot_position_similarity(similarity: Any) -> Any:
    """Draws, for the position of each patch, how alike those of all others are, as
    `position_similarity` returns it.

    Args:
        similarity: array (rows, columns, rows, columns), from -1 to 1.

    Returns:
        `matplotlib.figure.Figure`; `figure.savefig(file)` writes it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    rows, columns = similarity.shape[:2]
    figure, axes = _figure(
        rows * columns, columns, width=8 / columns, height=8 / columns * rows / columns
    )
    for axis, image in zip(axes.flat, similarity.reshape(-1, rows, columns)):
        drawn = axis.imshow(image, cmap="viridis", vmin=-1, vmax=1)
    figure.colorbar(drawn, ax=axes, shrink=0.6, label="cosine similarity")
    return figure


def _figure(count, columns, width, height):
    """(figure, its axes (rows, columns)), for `count` pictures of `width` times `height` inches."""
    # A Figure of its own leaves the user's pyplot state and backend alone.
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes


def _tallest(images):
    """The largest height / width."""
    return max(image.shape[0] / image.shape[1] for image in images)


def _rgb(image):
    """(height, width, 1 or 3), 0 to 255, as uint8 (height, width, 3); a copy."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(
            "An image must be (height, width, channels) of 1 or 3 channels. Received: shape "
            f"{image.shape}"
        )
    levels = np.rint(image.clip(0, 255)).astype("uint8")
    return np.array(np.broadcast_to(levels, (*levels.shape[:2], 3)))
