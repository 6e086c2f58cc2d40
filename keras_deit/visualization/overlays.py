"""Pictures of images with what the model looks at laid over them."""

import numpy as np


def plot_rollouts(images, rollouts, titles, columns=8):
    """Draws each image, and below it the image with its rollout laid over.

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
    # On demand: only pictures need it. A Figure of its own leaves the user's pyplot state and backend alone.
    from matplotlib.figure import Figure

    height, width = images.shape[1:3]
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.4 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for index, (image, rollout, title) in enumerate(zip(images, rollouts, titles)):
        row, column = divmod(index, columns)
        image = np.asarray(image, "float32") / 255
        image = np.broadcast_to(image, (height, width, 3)).clip(0, 1)
        extent = (0, width, height, 0)
        for axis in axes[2 * row : 2 * row + 2, column]:
            axis.imshow(image, extent=extent)
        axes[2 * row, column].set_title(title, fontsize=9)
        axes[2 * row + 1, column].imshow(rollout, extent=extent, cmap="inferno", alpha=0.6, interpolation="bicubic")
    return figure
