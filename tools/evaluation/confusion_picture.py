"""Pictures of a confusion matrix: all of it, or the pairs that are confused most."""

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

MOST_CLASSES = 30  # of a matrix that can be read
MOST_WITH_NUMBERS = 20
NUM_PAIRS = 30
# White to blue, and no black, so that numbers can be read on each
COLOURS = LinearSegmentedColormap.from_list("shares", ["#ffffff", "#9ec9e8", "#1f6aa5", "#0b3d66"])


def plot_confusion(matrix, labels):
    """A picture of a confusion matrix.

    Args:
        matrix: array (classes, classes), a row per class, a column per prediction.
        labels: names of the classes.

    Returns:
        `matplotlib.figure.Figure`: the matrix for up to 30 classes, otherwise the 30 pairs of
        class and prediction with the most images.
    """
    return (
        _plot_matrix(matrix, labels) if len(labels) <= MOST_CLASSES else _plot_pairs(matrix, labels)
    )


def _plot_matrix(matrix, labels):
    images = matrix.sum(axis=1)
    shares = matrix / np.maximum(images, 1)[:, None]
    side = max(3.5, 0.42 * len(labels) + 1.2 + 0.07 * max(map(len, labels)))
    figure = Figure((side + 1.0, side), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(shares, cmap=COLOURS, vmin=0, vmax=1)
    names = [_fitted(label) for label in labels]
    is_long = max(map(len, names)) > 3
    axis.set_xticks(range(len(names)), names, rotation=90 if is_long else 0)
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(length=0, labelsize=9)
    # White lines between the cells
    axis.set_xticks(np.arange(1, len(names)) - 0.5, minor=True)
    axis.set_yticks(np.arange(1, len(names)) - 0.5, minor=True)
    axis.grid(which="minor", color="#dddddd", linewidth=0.6)
    axis.tick_params(which="minor", length=0)
    axis.spines[:].set_color("#bbbbbb")
    axis.set_xlabel("prediction")
    axis.set_ylabel("class")
    axis.set_title(f"{matrix.trace()} of {matrix.sum()} images are correct", fontsize=10)
    bar = figure.colorbar(picture, shrink=0.7, aspect=25, format="{x:.0%}")
    bar.set_label("share of the images of the class", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    if len(labels) <= MOST_WITH_NUMBERS:
        size = 9 if matrix.max() < 1000 else 7
        for row, column in np.argwhere(matrix):
            axis.text(
                column,
                row,
                str(matrix[row, column]),
                ha="center",
                va="center",
                fontsize=size,
                color="white" if shares[row, column] > 0.5 else "#222222",
            )
    return figure


def _plot_pairs(matrix, labels):
    wrong = matrix - np.diag(matrix.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:NUM_PAIRS]
    pairs = [(row, column) for row, column in zip(*np.unravel_index(order, wrong.shape))]
    pairs = [pair for pair in pairs if wrong[pair]]
    images = matrix.sum(axis=1)
    figure = Figure((8, 0.26 * max(len(pairs), 3) + 1.1), layout="constrained")
    axis = figure.subplots()
    names = [f"{_fitted(labels[row])} → {_fitted(labels[column])}" for row, column in pairs]
    places = np.arange(len(pairs))
    axis.barh(places, [wrong[pair] for pair in pairs], color="#1f6aa5", height=0.7)
    for place, (row, column) in zip(places, pairs):
        count = wrong[row, column]
        axis.text(count, place, f" {count} of {images[row]}", va="center", fontsize=8)
    axis.set_yticks(places, names, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.12, y=0.01)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("images of the first class that are taken for the second", fontsize=9)
    axis.set_title(
        f"{matrix.trace()} of {matrix.sum()} images of {len(labels)} classes are correct. The "
        "pairs confused most:",
        fontsize=10,
        loc="right",
    )
    return figure


def _fitted(label):
    return label if len(label) <= 24 else f"{label[:22]}..."
