"""Plots: images, attention maps over images, patch filters, position similarity."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # matplotlib is imported where a picture is drawn
    from matplotlib.figure import Figure

_PALETTE = "viridis"  # no orange or red, which many photographs contain


def overlay(
    image: Any, shares: Any, box: Any = None, strength: float = 0.6, largest: float | None = None
) -> np.ndarray:
    """Returns an image with an attention map drawn over it, at the size of the image.

    Args:
        image: array (height, width, 1 or 3), 0 to 255.
        shares: array (rows, columns). The attention to each patch, such as one map of
            `attention_rollout`. 0 is darkest, `largest` is brightest.
        box: (top, left, height, width), in pixels. The part of the image that the model sees,
            `converter.crop_box(height, width)`. The map fades out at the edges of the box, and the
            image outside it is unchanged. Defaults to `None`, which means the whole image.
        strength: float in [0, 1]. Opacity of the map. Defaults to 0.6.
        largest: float. The value with the brightest colour. Defaults to `None`, which uses the
            largest value of the map or three times its mean, whichever is larger. So a map that is
            almost even looks even.

    Returns:
        uint8 array (height, width, 3).

    Raises:
        ValueError: if the shape of `image` or `shares` is wrong.
        ImportError: if matplotlib is not installed.
    """
    # Imported here, because only plots need them.
    import matplotlib
    from PIL import Image

    picture, shares = _rgb(image), np.asarray(shares, "float32")
    if shares.ndim != 2:
        raise ValueError(
            "`shares` must have the shape (rows, columns). Select one image, and one head. "
            f"Received: shares of shape {shares.shape}"
        )
    height, width = picture.shape[:2]
    top, left, box_height, box_width = box or (0, 0, height, width)
    # Whole pixels, and at least one.
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
    """The value with the brightest colour, for all of these maps."""
    return max(
        max(np.max(shares), 3 * np.mean(shares), np.finfo("float32").tiny) for shares in maps
    )


def _fading(start, end, size):
    """Returns the opacity of each pixel from `start` to `end`: 1, and lower near an edge of the box
    inside the image, over a twentieth of the box.
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
    """Returns a larger image by repeating each pixel, so that an `overlay` on it looks smooth.

    Args:
        image: array (height, width, channels).
        least: int. Smallest height and width of the result. Defaults to 256.

    Returns:
        array (n * height, n * width, channels), with the smallest integer n that is enough.
    """
    times = -(-least // min(image.shape[:2]))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def plot_images(images: Any, titles: Sequence[str] | None = None, columns: int = 4) -> "Figure":
    """Plots images side by side. Each keeps its aspect ratio.

    Args:
        images: list of arrays (height, width, 1 or 3), 0 to 255.
        titles: list of strings, one for each image. Defaults to `None`, which plots no titles.
        columns: int. Number of images in a row. Defaults to 4.

    Returns:
        `matplotlib.figure.Figure`. Save it with `figure.savefig(path)`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    columns = min(columns, len(images))
    figure, axes = _figure(
        len(images), columns, width=10 / columns, height=10 / columns * _tallest(images) + 0.3
    )
    for axis, image in zip(axes.flat, images):
        axis.imshow(_rgb(image))
    for axis, title in zip(axes.flat, titles or ()):
        axis.set_title(title, fontsize=9, parse_math=False)
    return figure


def plot_overlays(
    images: Any, maps: Any, titles: Sequence[str] | None = None, box: Any = None, columns: int = 4
) -> "Figure":
    """Plots images side by side with attention maps over them. All share one colour bar.

    Args:
        images: list of arrays (height, width, 1 or 3), 0 to 255.
        maps: list of arrays (rows, columns), one for each image, such as one head of
            `attention_maps`. `None` plots the image without a map.
        titles: list of strings, one for each image. Defaults to `None`, which plots no titles.
        box: (top, left, height, width), for all images; see `overlay`. Defaults to `None`.
        columns: int. Number of images in a row. Defaults to 4.

    Returns:
        `matplotlib.figure.Figure`. Save it with `figure.savefig(path)`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    largest = _largest([shares for shares in maps if shares is not None])
    drawn = [
        image if shares is None else overlay(image, shares, box, largest=largest)
        for image, shares in zip(images, maps)
    ]
    figure = plot_images(drawn, titles, columns)
    _add_colour_bar(figure, largest)
    return figure


def plot_rollouts(images: Any, rollouts: Any, titles: Sequence[str], columns: int = 8) -> "Figure":
    """Plots each image, and below it the image with its rollout. All share one colour bar.

    Args:
        images: array (batch, height, width, 1 or 3), 0 to 255.
        rollouts: array (batch, rows, columns), as returned by `attention_rollout`.
        titles: list of strings, one for each image.
        columns: int. Number of images in a row. Defaults to 8.

    Returns:
        `matplotlib.figure.Figure`. Save it with `figure.savefig(path)`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    rows, largest = -(-len(images) // columns), _largest(rollouts)
    figure, axes = _figure(2 * rows * columns, columns, width=1.4, height=1.6)
    for index, (image, rollout, title) in enumerate(zip(images, rollouts, titles)):
        row, column = divmod(index, columns)
        image = enlarge(_rgb(image))
        axes[2 * row, column].imshow(image)
        axes[2 * row, column].set_title(title, fontsize=9, parse_math=False)
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


def plot_filters(filters: Any, columns: int = 7) -> "Figure":
    """Plots patch filters, each scaled to the full range of brightness.

    Args:
        filters: array (filters, height, width, 1 or 3), as returned by `patch_filters`.
        columns: int. Number of filters in a row. Defaults to 7.

    Returns:
        `matplotlib.figure.Figure`. Save it with `figure.savefig(path)`.

    Raises:
        ValueError: if `filters` does not have 1 or 3 channels.
        ImportError: if matplotlib is not installed.
    """
    if filters.shape[-1] not in (1, 3):
        raise ValueError(
            "`filters` must have 1 or 3 channels, to be plotted in grey or colour. Select 1 or 3. "
            f"Received: filters of shape {filters.shape}"
        )
    lowest, highest = (
        filters.min(axis=(1, 2, 3), keepdims=True),
        filters.max(axis=(1, 2, 3), keepdims=True),
    )
    figure, axes = _figure(len(filters), columns, width=0.9, height=0.9)
    for axis, image in zip(axes.flat, 255 * (filters - lowest) / (highest - lowest)):
        axis.imshow(_rgb(image))
    return figure


def plot_position_similarity(similarity: Any) -> "Figure":
    """Plots one map for each patch: the similarity of its position embedding to all others.

    Args:
        similarity: array (rows, columns, rows, columns), -1 to 1, as returned by
            `position_similarity`.

    Returns:
        `matplotlib.figure.Figure`. Save it with `figure.savefig(path)`.

    Raises:
        ImportError: if matplotlib is not installed.
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
    """Returns a figure for `count` images of `width` x `height` inches, and its axes."""
    # Unlike `pyplot.figure`, this changes neither the user's current figure nor the backend.
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes


def _tallest(images):
    """The largest height / width of these images."""
    return max(image.shape[0] / image.shape[1] for image in images)


def _rgb(image):
    """Returns a copy of an image (height, width, 1 or 3), 0 to 255, as uint8 (height, width, 3)."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(
            "An image must have the shape (height, width, channels), with 1 or 3 channels. Select "
            f"one image of a batch. Received: an image of shape {image.shape}"
        )
    levels = np.rint(image.clip(0, 255)).astype("uint8")
    return np.array(np.broadcast_to(levels, (*levels.shape[:2], 3)))
