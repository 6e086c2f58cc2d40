"""Pictures of a confusion matrix: all of it, or the pairs that are confused most."""

import numpy as np
from evaluation.labels import shortened
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

MOST_CLASSES = 30  # of a matrix that can be read
NUM_PAIRS = 30
BLUE, RED = "#1f6aa5", "#c2410c"
CORRECT = LinearSegmentedColormap.from_list("correct", ["#ffffff", "#9ec9e8", BLUE, "#0b3d66"])
WRONG = LinearSegmentedColormap.from_list("wrong", ["#ffffff", "#fdba74", RED, "#7c2d12"])


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
    count, names = len(labels), [shortened(label) for label in labels]
    shares = matrix / np.maximum(matrix.sum(axis=1), 1)[:, None]
    is_correct = np.eye(count, dtype=bool)[..., None]
    # The square root shows also errors that are rare.
    colours = np.where(is_correct, CORRECT(shares), WRONG(shares**0.5))
    longest = max(map(len, names))
    side = 0.36 * max(count, 6) + 0.075 * longest + 0.9
    figure = Figure((side, side), layout="constrained")
    axis = figure.subplots()
    axis.imshow(colours)
    # Labels are plain text: two $ in a label would be a formula.
    axis.set_xticks(range(count), names, rotation=90 if longest > 3 else 0, parse_math=False)
    axis.set_yticks(range(count), names, parse_math=False)
    # Lines between the cells
    axis.set_xticks(np.arange(1, count) - 0.5, minor=True)
    axis.set_yticks(np.arange(1, count) - 0.5, minor=True)
    axis.grid(which="minor", color="#dddddd", linewidth=0.6)
    axis.tick_params(which="both", length=0, labelsize=8)
    axis.spines[:].set_color("#bbbbbb")
    axis.set_xlabel("prediction", fontsize=9)
    axis.set_ylabel("class", fontsize=9)
    axis.set_title(f"{matrix.trace():,} of {matrix.sum():,} images are correct", fontsize=10)
    is_dark = np.asarray(colours)[..., :3].mean(axis=-1) < 0.6
    for row, column in np.argwhere(matrix):
        axis.text(
            column,
            row,
            str(matrix[row, column]),
            ha="center",
            va="center",
            fontsize=8 if matrix[row, column] < 10_000 else 6,
            color="white" if is_dark[row, column] else "#222222",
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
    names = [f"{shortened(labels[row])} → {shortened(labels[column])}" for row, column in pairs]
    places = np.arange(len(pairs))
    axis.barh(places, [wrong[pair] for pair in pairs], color=RED, height=0.7)
    for place, (row, column) in zip(places, pairs):
        count = wrong[row, column]
        axis.text(count, place, f" {count} of {images[row]}", va="center", fontsize=8)
    axis.set_yticks(places, names, fontsize=8, parse_math=False)
    axis.invert_yaxis()
    axis.margins(x=0.12, y=0.01)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("images of the first class that are taken for the second", fontsize=9)
    axis.set_title(
        f"{matrix.trace():,} of {matrix.sum():,} images are correct. What is confused most:",
        fontsize=10,
        loc="right",
    )
    return figure
