"""Draws the pictures of README.md and docs/.

    pip install ".[tensorflow,examples]" && python tools/docs_figures.py
    python tools/docs_figures.py --only rollout,heads

They show the digits model that ships inside the package and scikit-learn's sample photographs, so
no download is needed. Writes PNG files into docs/figures. `distil` runs the code of docs/distil.md,
which takes about a minute; the others take seconds.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import tempfile

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags
from evaluation.confusion_picture import plot_confusion
from evaluation.worst_images import keep_worst, plot_worst
from keras import ops
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from keras_deit import layers, visualization
from keras_deit.models import DeiTImageClassifier

FLAGS = flags.FLAGS
DOCS = pathlib.Path(__file__).parent.parent / "docs"
DPI = 110
NUM_MERGED_TOKENS = 8


def unseen_digits():
    """(images, labels): the digits that the model was not trained on."""
    digits = load_digits()
    images = np.round(digits.images[-360:, ..., None] * (255 / 16)).astype("uint8")
    return images, digits.target[-360:]


def digits_model(**overrides):
    return DeiTImageClassifier.from_preset("deit_nano_distilled_patch4_32_digits", **overrides)


def scores_of(classifier, images):
    model = keras.Model(classifier.backbone.input, classifier.backbone.attention_scores)
    return model.predict(classifier.preprocessor(images), verbose=0)


def large(images):
    """At 256 pixels, so that the picture shows the pixels of a digit as squares."""
    return [visualization.enlarge(image) for image in images]


def rollout():
    """Eight digits, the model's answers, and its attention through all blocks."""
    classifier, (images, _) = digits_model(), unseen_digits()
    images, backbone = images[:8], classifier.backbone
    rollouts = visualization.attention_rollout(
        scores_of(classifier, images), backbone.num_prefix_tokens, backbone.grid_size
    )
    best = classifier.decode_predictions(classifier.predict(images, verbose=0), top=1)
    titles = [f"{label} ({probability:.0%})" for [(label, probability)] in best]
    return visualization.plot_rollouts(images, rollouts, titles)


def heads():
    """What each head of the last block looks at."""
    classifier, (images, _) = digits_model(), unseen_digits()
    backbone = classifier.backbone
    maps = visualization.attention_maps(
        scores_of(classifier, images[:1])["block_3"],
        backbone.num_prefix_tokens,
        backbone.grid_size,
    )[0]
    image = large(images[:1])[0]
    titles = ["image", *(f"head {index}" for index in range(len(maps)))]
    return visualization.plot_overlays(
        [image] * (1 + len(maps)), [None, *maps], titles, columns=1 + len(maps)
    )


def filters():
    """The patterns of 4 x 4 pixels that the patch embedding tells apart."""
    return visualization.plot_filters(visualization.patch_filters(digits_model().backbone)[:14])


def positions():
    """The similarity of each patch's position to all others."""
    similarity = visualization.position_similarity(digits_model().backbone)
    return visualization.plot_position_similarity(similarity)


def predictions():
    """The two most likely classes of the eight digits that the model is least sure of."""
    classifier, (images, _) = digits_model(), unseen_digits()
    logits = classifier.predict(images, verbose=0)
    probabilities = ops.convert_to_numpy(ops.softmax(logits))
    least_sure = probabilities.max(axis=-1).argsort()[:8]
    titles = [
        "\n".join(f"{label} ({probability:.0%})" for label, probability in best)
        for best in classifier.decode_predictions(logits[least_sure], top=2)
    ]
    return visualization.plot_images(large(images[least_sure]), titles, columns=8)


def confusion():
    """The digits that the model takes for others."""
    classifier, (images, digits) = digits_model(), unseen_digits()
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (digits, classifier.predict(images, verbose=0).argmax(axis=-1)), 1)
    return plot_confusion(matrix, classifier.labels)


def worst_images():
    """The twelve digits with the highest loss."""
    classifier, (images, digits) = digits_model(), unseen_digits()
    probabilities = ops.convert_to_numpy(ops.softmax(classifier.predict(images, verbose=0)))
    worst = []
    keep_worst(worst, np.arange(len(images)), probabilities, digits)
    worst = worst[:12]
    return plot_worst(worst, [images[row[1]] / 255 for row in worst], classifier.labels)


def converter():
    """What `DeiTImageConverter` cuts out of a photograph."""
    photograph = load_sample_images().images[0]
    figure = Figure(figsize=(7, 2.5), layout="constrained")
    widths = [1.5, 1, 1]
    axes = figure.subplots(1, 3, width_ratios=widths)
    axes[0].imshow(photograph)
    axes[0].set_title(f"photograph, {photograph.shape[1]} x {photograph.shape[0]}", fontsize=9)
    for axis, crop_ratio, colour in zip(axes[1:], (0.875, 1.0), ("tab:orange", "tab:blue")):
        convert = layers.DeiTImageConverter(224, crop_ratio)
        top, left, height, width = convert.crop_box(*photograph.shape[:2])
        axes[0].add_patch(_rectangle(left, top, width, height, colour))
        pixels = keras.ops.convert_to_numpy(convert(photograph)) * convert.std + convert.mean
        axis.imshow(pixels.clip(0, 1))
        axis.set_title(f"224 x 224, crop_ratio={crop_ratio}", fontsize=9, color=colour)
    for axis in axes:
        axis.set_axis_off()
    return figure


def _rectangle(left, top, width, height, colour):
    return Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=2)


def augmentation():
    """Six training images of each recipe."""
    import tensorflow as tf

    from keras_deit.training import RECIPES, batches

    photographs = np.stack(load_sample_images().images)
    data = tf.data.Dataset.from_tensor_slices((photographs, [0, 1]))
    convert = layers.DeiTImageConverter(128)
    names = ("new_classes", "deit", "deit3_small")
    figure = Figure(figsize=(6.6, 3.6), layout="constrained")
    for name, axes in zip(names, figure.subplots(len(names), 6)):
        recipe = RECIPES[name].augmentation
        images, _ = next(
            iter(batches.training_batches(data, recipe, convert, 2, batch_size=6, seed=3))
        )
        for axis, image in zip(axes, images.numpy() * convert.std + convert.mean):
            axis.imshow(image.clip(0, 1))
            axis.set_axis_off()
        axes[0].set_title(f'RECIPES["{name}"]', fontsize=9, loc="left")
    return figure


def token_merging():
    """Which patches of a digit end in one token, after each of the four blocks."""
    images = unseen_digits()[0][:4]
    classifier = digits_model(num_merged_tokens=NUM_MERGED_TOKENS)
    backbone = classifier.backbone
    figure = Figure(figsize=(7.2, 6.1), layout="constrained")
    axes = figure.subplots(len(images), 1 + len(backbone.blocks))
    groups = _groups(backbone, classifier.preprocessor(images))
    for row, image in zip(axes, images):
        row[0].imshow(visualization.enlarge(image, 8 * 32).squeeze(-1), cmap="gray")
    for column, of_block in enumerate(groups, start=1):
        for row, image, membership in zip(axes, images, of_block):
            row[column].imshow(_mean_of_groups(image, membership, backbone), cmap="gray")
            _draw_borders(row[column], membership.argmax(axis=0), backbone)
        axes[0, column].set_title(f"{of_block.shape[1]} tokens", fontsize=9)
    axes[0, 0].set_title(f"{backbone.grid_size[0] * backbone.grid_size[1]} patches", fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def _groups(backbone, images):
    """For each block (batch, tokens, patches): the share of each patch in each patch token.

    The merging of a block is applied to these shares as it is to the tokens.
    """
    prefix, num_patches = backbone.num_prefix_tokens, backbone.grid_size[0] * backbone.grid_size[1]
    tokens = backbone.token_position_embedding(backbone.patch_embedding(images))
    shares = np.tile(np.eye(prefix + num_patches, dtype="float32"), (len(images), 1, 1))
    shares, sizes, found = ops.convert_to_tensor(shares), None, []
    for block in backbone.blocks:
        _, key, _ = block.attention.heads(block.attention_norm(tokens))
        shares, _ = block.token_merging(shares, ops.mean(key, axis=2), token_sizes=sizes)
        tokens, sizes = block(tokens, token_sizes=sizes)
        found.append(ops.convert_to_numpy(shares)[:, prefix:, prefix:])
    return found


def _mean_of_groups(image, membership, backbone):
    """The image with each patch in the mean grey of its group."""
    rows, columns = backbone.grid_size
    patches = image.reshape(rows, 8 // rows, columns, 8 // columns).mean(axis=(1, 3)).reshape(-1)
    means = membership @ patches / membership.sum(axis=1)
    return means[membership.argmax(axis=0)].reshape(rows, columns).repeat(32, 0).repeat(32, 1)


def _draw_borders(axis, group, backbone):
    group = group.reshape(backbone.grid_size)
    for row, column in np.argwhere(group[1:] != group[:-1]):
        axis.plot(
            [32 * column - 0.5, 32 * column + 31.5], [32 * row + 31.5] * 2, "tab:orange", lw=0.8
        )
    for row, column in np.argwhere(group[:, 1:] != group[:, :-1]):
        axis.plot([32 * column + 31.5] * 2, [32 * row - 0.5, 32 * row + 31.5], "tab:orange", lw=0.8)


def token_reduction():
    """Accuracy against operations, with and without training; benchmarks/token_reduction.py."""
    results = json.loads((DOCS / "token_reduction.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(8.6, 3.5), layout="constrained")
    panels = (("num_merged_tokens", "merged in each block"), ("keep_rate", "kept by three blocks"))
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True)
    rows = (
        ("shipped", "as shipped", "tab:gray", "s", "--"),
        ("control", "fine-tuned without reduction", "tab:blue", "o", "-"),
        ("trained", "fine-tuned with reduction", "tab:orange", "D", "-"),
    )
    for axis, (argument, title) in zip(axes, panels):
        strengths = [name.split()[-1] for name in results if name.startswith(f"flops {argument} ")]
        operations = [1.0, *(results[f"flops {argument} {strength}"] for strength in strengths)]
        for kind, label, colour, marker, line in rows:
            # Without reduction, the control is what was trained.
            places = [f"{'control' if kind == 'trained' else kind} none"]
            places += [f"{kind} {argument} {strength}" for strength in strengths]
            found = [_of_all_seeds(results, place) for place in places]
            axis.plot(
                operations,
                [np.mean(values) for values in found],
                line,
                color=colour,
                marker=marker,
                markersize=5,
                label=label,
            )
            for x, values in zip(operations, found):
                if len(values) > 1:
                    axis.plot([x, x], [min(values), max(values)], color=colour, alpha=0.4, lw=3)
        for x, strength in zip(operations[1:], strengths):
            axis.annotate(
                strength,
                (x, 1),
                (0, 3),
                ("data", "axes fraction"),
                "offset points",
                ha="center",
                fontsize=8,
            )
        axis.set_title(f"{argument}: {title}", fontsize=9, pad=16)
        axis.set_xlabel("operations, share of those without reduction", fontsize=9)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.grid(alpha=0.3)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    axes[0].set_ylabel("test accuracy", fontsize=9)
    axes[1].legend(fontsize=8, loc="lower right")
    return figure


def _of_all_seeds(results, name):
    return [value for key, value in results.items() if key.split(" seed ")[0] == name]


def distil():
    """The losses and the accuracy of the training in docs/distil.md."""
    page = (DOCS / "distil.md").read_text(encoding="utf-8")
    code, names = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # it saves the student
        exec(code, names)
    history = names["distiller"].history.history
    epochs = range(1, 1 + len(history["loss"]))
    figure = Figure(figsize=(9, 3), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for name in ("class_loss", "distillation_loss"):
        losses.plot(epochs, history[name], label=name)
    for name in ("accuracy", "val_accuracy"):
        accuracies.plot(epochs, history[name], label=name)
    for axis, title in ((losses, "loss"), (accuracies, "accuracy of both heads together")):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


def save(figure, file):
    """Writes a PNG of 256 colours, a third of the size of one in full colour."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI)
    Image.open(drawn).convert("RGB").quantize(256).save(file, optimize=True)


FIGURES = {
    function.__name__: function
    for function in (
        rollout,
        heads,
        filters,
        positions,
        predictions,
        confusion,
        worst_images,
        converter,
        augmentation,
        token_merging,
        token_reduction,
        distil,
    )
}
flags.DEFINE_list("only", list(FIGURES), "Names of the figures to draw.")
flags.DEFINE_string("output", str(DOCS / "figures"), "Folder to write into.")


def main(_):
    unknown = sorted(set(FLAGS.only) - set(FIGURES))
    if unknown:
        raise app.UsageError(f"--only takes {', '.join(FIGURES)}. Received: {', '.join(unknown)}")
    folder = pathlib.Path(FLAGS.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FLAGS.only:
        file = folder / f"{name}.png"
        save(FIGURES[name](), file)
        print(f"wrote {file}, {file.stat().st_size // 1000} kB")


if __name__ == "__main__":
    app.run(main)
