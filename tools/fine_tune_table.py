"""Does fine-tuning on new classes beat a linear probe? Tries both on two small datasets.

    pip install ".[examples,train]" && python tools/fine_tune_table.py

Writes the table of docs/fine_tune.md, and with tools/probe.py that of docs/probe.md. The datasets
are scikit-learn's digits 5 to 9, for a backbone that this program first trains on the digits 0 to
4, and drawn shapes, for the digits model that ships. (That model has seen all ten digits.)
Everything trains with tools/train.py; the last column with its defaults. `train` is trained on,
`val` chooses the epoch and the C of the probe, `test` is only for the score. tools/probe.py scores
on `val`.

It takes a quarter of an hour on two busy cores with KERAS_BACKEND=jax; with `--only probe`, four
minutes. `--work` keeps what was trained, so an interrupted run resumes.
"""

import json
import os
import pathlib
import subprocess
import sys

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags
from markdown_section import write_section
from PIL import Image, ImageDraw
from probing.features import feature_model, load_classifier
from probing.methods import best_logistic_regression
from sklearn.datasets import load_digits

from keras_deit.models import DeiTImageClassifier

ROOT = pathlib.Path(__file__).parents[1]
FLAGS = flags.FLAGS
flags.DEFINE_string("work", "fine_tune_table", "Folder for images and trainings.")
NANO = "deit_nano_distilled_patch4_32_digits"
PARTS = ("train", "val", "test")
SHAPES = {"circle": 64, "triangle": 3, "square": 4, "star": 5}
SHAPES_OF_EACH = {"train": 60, "val": 20, "test": 100}


def draw_shape(name, rng):
    """A noisy gray image (32, 32) of a shape of random size, place, angle, fill and brightness."""
    corners = SHAPES[name] * (2 if name == "star" else 1)
    radii = np.where(np.arange(corners) % 2, 0.45, 1.0) if name == "star" else np.ones(corners)
    angles = 2 * np.pi * np.arange(corners) / corners + rng.uniform(-0.3, 0.3)
    scale = rng.uniform(28, 48)
    points = 64 + rng.uniform(-8, 8, 2) + scale * (radii * [np.cos(angles), np.sin(angles)]).T
    dark, light = np.sort(rng.uniform(0, 255, 2) + [-40, 40]).clip(0, 255)
    image = Image.new("L", (128, 128), int(dark))
    fill = int(light) if rng.uniform() < 0.5 else None
    ImageDraw.Draw(image).polygon(
        [tuple(point) for point in points], fill=fill, outline=int(light), width=8
    )
    pixels = np.asarray(image.resize((32, 32), Image.Resampling.BOX), float) + rng.normal(
        0, 8, (32, 32)
    )
    return pixels.clip(0, 255).astype("uint8")


def write_images(folder, part, label, images):
    directory = folder / part / label
    directory.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(directory / f"{index:03d}.png")


def write_shapes(folder):
    rng = np.random.default_rng(0)
    for part in PARTS:
        for name in SHAPES:
            write_images(
                folder, part, name, [draw_shape(name, rng) for _ in range(SHAPES_OF_EACH[part])]
            )


def write_digits(folder, classes, every=1):
    """Writes some classes of scikit-learn's digits.

    Args:
        every: train on every n-th of the first 1150 digits. 287 are for `val`, 360 for `test`.
    """
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype("uint8")
    rows = {"train": slice(0, 1150, every), "val": slice(1150, 1437), "test": slice(1437, 1797)}
    for part, row in rows.items():
        for label in classes:
            write_images(folder, part, str(label), images[row][digits.target[row] == label])


def train(data, output, preset, **options):
    """Runs tools/train.py, which resumes, or has nothing left to do."""
    start("train.py", data=data, output=output, preset=preset, **options)


def start(program, **given):
    command = [
        sys.executable,
        ROOT / "tools" / program,
        *(f"--{name}={value}" for name, value in given.items()),
    ]
    subprocess.run(
        command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    )


def read(folder):
    """(images, labels) of one part; images (N, H, W, 1), 0 to 255."""
    labels = sorted(path.name for path in folder.iterdir())
    files = [
        (file, index)
        for index, label in enumerate(labels)
        for file in sorted((folder / label).iterdir())
    ]
    images = [
        keras.utils.img_to_array(keras.utils.load_img(file, color_mode="grayscale"))
        for file, _ in files
    ]
    return np.stack(images), np.array([index for _, index in files])


def probe(data, preset):
    """Test accuracy of a logistic regression on the inputs of the head, with C chosen by `val`."""
    classifier = load_classifier(preset)
    model = feature_model(classifier)
    sets = {}
    for part in PARTS:
        images, labels = read(data / part)
        sets[part] = model.predict(classifier.preprocessor(images), verbose=0), labels
    return best_logistic_regression(sets["train"], sets["val"]).score(*sets["test"])


def accuracy(data, preset):
    images, labels = read(data / "test")
    return float(
        (
            DeiTImageClassifier.from_preset(preset).predict(images, verbose=0).argmax(-1) == labels
        ).mean()
    )


def row(title, data, preset, output):
    """A row of the table: the probe, a published recipe for known classes, the default recipe."""
    published = {"recipe": "deit3_base_fine_tune_224", "epochs": 20}
    train(data, output / "published", preset, **published)
    train(data, output / "default", preset)
    found = [
        probe(data, preset),
        *(accuracy(data, output / kind / "best") for kind in ("published", "default")),
    ]
    counts = [len(list(data.glob(f"{part}/*/*"))) for part in ("train", "test")]
    return (
        f"| {title} | {counts[0]} | {counts[1]} | "
        + " | ".join(f"{value:.1%}" for value in found)
        + " |"
    )


def probe_row(title, data, preset, output):
    """A row of the table in docs/probe.md."""
    start("probe.py", data=data, output=output, preset=preset)
    content = json.loads((output / "probe.json").read_text())
    cells = [
        f"{result['accuracy']:.1%}"
        + (f" ± {result['standard_deviation']:.1%}" if "draws" in result else "")
        for result in content["results"]
    ]
    counts = (str(content[f"{part}_images"]) for part in ("training", "validation"))
    return f"| {' | '.join([title, *counts, *cells])} |"


def probe_table(rows):
    lines = [
        "| classes | training images | `val` images | k-NN, 10 | k-NN, 20 | linear probe | 1 per "
        "class | 5 per class | 10 per class |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(probe_row(title, data, preset, run) for title, data, preset, run in rows),
    ]
    return "\n".join(lines)


def fine_tune_table(rows):
    lines = [
        "| new classes | training images | test images | linear probe | "
        "`deit3_base_fine_tune_224` | `new_classes` |",
        "| --- | --- | --- | --- | --- | --- |",
        *(row(title, data, preset, run) for title, data, preset, run in rows),
    ]
    return "\n".join(lines)


TABLES = {"probe": probe_table, "fine_tune": fine_tune_table}
flags.DEFINE_list("only", list(TABLES), "Names of the tables to write.")


def main(_):
    unknown = sorted(set(FLAGS.only) - set(TABLES))
    if unknown:
        raise app.UsageError(f"--only takes {', '.join(TABLES)}. Received: {', '.join(unknown)}")
    work = pathlib.Path(FLAGS.work)
    write_digits(work / "digits_0_to_4", range(5))
    write_digits(work / "digits_5_to_9", range(5, 10), every=3)
    write_shapes(work / "shapes")
    from_scratch = {
        "load_weights": False,
        "recipe": "new_classes",
        "learning_rate": 5e-4,
        "epochs": 50,
    }
    train(work / "digits_0_to_4", work / "knows_0_to_4", NANO, **from_scratch)
    rows = [
        ("digits 5 to 9", "digits_5_to_9", work / "knows_0_to_4" / "best", "digits"),
        ("shapes", "shapes", NANO, "shapes_run"),
    ]
    for name in FLAGS.only:
        runs = [
            (title, work / data, preset, work / (run if name == "fine_tune" else f"{run}_probe"))
            for title, data, preset, run in rows
        ]
        table = TABLES[name](runs)
        write_section(ROOT / "docs" / f"{name}.md", name, table)
        print(table)


if __name__ == "__main__":
    app.run(main)
