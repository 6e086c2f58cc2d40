"""Measures the accuracy of classifiers as the official code of DeiT does.

    pip install ".[evaluate]"

On ImageNet, in a folder or prepared by TensorFlow Datasets:

    python tools/evaluate.py --data_dir imagenet/val --output imagenet.csv \\
        --preset deit_tiny_patch16_224,deit3_small_patch16_224
    python tools/evaluate.py --data_dir tfds:imagenet2012 --output bfloat16.csv \\
        --preset deit_tiny_patch16_224 --dtype bfloat16

With ReaL labels, from real.json of google-research/reassessed-imagenet:

    python tools/evaluate.py --data_dir imagenet/val --output real.csv \\
        --preset deit_tiny_patch16_224 --real_labels real.json

On your own images, with a report of the classes:

    python tools/evaluate.py --data_dir photos/val --output mine.csv \\
        --preset my_preset --class_report mine

A folder contains one folder of images per class. For ImageNet they are named by synset, n01440764
to n15075141; for other models they have the names of the model's labels. Of a TensorFlow dataset,
the split `validation` is used, or else `test`.

The table has a row per model, with the published top-1 accuracy beside the measured one, and the
results of sayakpaul/deit-tf for the same weights. `images_per_second` covers reading, converting
and predicting, without the first batch. Images that cannot be read are printed, counted, and left
out of the accuracy. ImageNet's images are not rotated by their EXIF tag, as in the official code.
timm evaluates with `--crop_ratio 0.9`, so its accuracies differ from the published ones.

`--class_report` writes tables and pictures per model. `<preset>_classes.csv` has recall, precision
and F1 per class, the lowest recall first. `<preset>_confusion.csv` counts images by class and
prediction; `<preset>_confusion.png` shows it, or of more than 30 classes the pairs confused most.
`<preset>_worst.png` shows the 24 images with the highest loss as the model sees them;
`<preset>_worst.csv` has their files.

To resume an interrupted evaluation, start it again with the same flags. The accuracy is the same
as without interruption. Models that are in the table already are not evaluated again.
"""

import os
import pathlib
import re
import sys

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags
from evaluation.class_report import class_table, confusion_matrix, matrix_table
from evaluation.confusion_picture import plot_confusion
from evaluation.counts import Progress, count_answers
from evaluation.labels import read_real_labels
from evaluation.table import build_row, check_rows, read_rows, row_settings, write_rows
from evaluation.worst_images import plot_worst, seen_images, worst_table
from flag_errors import of_flag

from keras_deit import presets
from keras_deit.atomic import atomic_file, check_file
from keras_deit.training.image_folder import ImageFolder
from keras_deit.training.tfds_images import TfdsImages

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "data_dir", None, "Folder with one folder of images per class, or tfds:NAME.", required=True
)
flags.DEFINE_list(
    "preset", None, "Names, hf:// addresses or directories of classifiers.", required=True
)
flags.DEFINE_string("output", "evaluation.csv", "Table to write or to add rows to.")
flags.DEFINE_string("real_labels", None, "Path of real.json, to measure ReaL accuracy as well.")
flags.DEFINE_string(
    "class_report", None, "Folder for tables and pictures of the classes and the worst images."
)
flags.DEFINE_float(
    "crop_ratio", None, "Share of the resized image that the crop keeps. Default: the preset's."
)
flags.DEFINE_string("dtype", None, "Keras dtype, such as bfloat16. Default: the preset's.")
flags.DEFINE_integer("batch_size", 64, "Number of images per batch.", 1)


def open_images(data_dir):
    if data_dir.startswith("tfds:"):
        return TfdsImages.open(data_dir.removeprefix("tfds:"))
    directory = pathlib.Path(os.path.expanduser(data_dir))
    if directory.is_dir() and not any(entry.is_dir() for entry in directory.iterdir()):
        raise ValueError(
            "Expected one subfolder of images per class. ImageNet's validation images come without "
            "subfolders: move each image to a folder named by its synset, such as n01440764. "
            "Received: a folder without subfolders"
        )
    return ImageFolder.open(directory)


def write_tables(handle, counts, images, labels):
    matrix = confusion_matrix(counts["answers"], len(labels))
    tables = {
        "classes.csv": class_table(matrix, labels),
        "worst.csv": worst_table(counts["worst"], images, labels),
        "confusion.csv": matrix_table(matrix, labels),
    }
    for name, table in tables.items():
        with atomic_file(report_file(handle, name)) as file:
            file.write_text(table)


def write_pictures(handle, counts, images, classifier):
    labels, worst = classifier.labels, counts["worst"]
    matrix = confusion_matrix(counts["answers"], len(labels))
    figures = {
        "confusion.png": plot_confusion(matrix, labels),
        "worst.png": plot_worst(worst, seen_images(worst, images, classifier), labels),
    }
    for name, figure in figures.items():
        with atomic_file(report_file(handle, name)) as file:
            figure.savefig(file, dpi=150)


def report_file(handle, name):
    prefix = re.sub(r"[^\w.-]+", "_", handle).strip("_.")
    return pathlib.Path(os.path.expanduser(FLAGS.class_report)) / f"{prefix}_{name}"


def files_of_preset(handle):
    """Sizes and times of a local preset's files: counts of other weights must not be added up."""
    folder = pathlib.Path(os.path.expanduser(handle))
    if not folder.is_dir():
        return None
    return [
        [file.name, file.stat().st_size, file.stat().st_mtime_ns]
        for file in sorted(folder.iterdir())
    ]


def is_done(handle, rows, output):
    """Whether a model is in the table already."""
    if handle not in [row["model_name"] for row in rows]:
        return False
    if FLAGS.class_report and not report_file(handle, "confusion.csv").exists():
        raise ValueError(
            f"--class_report: {output} has a row of {handle} already, but there is no report of "
            "it. Delete the row to evaluate the model again, or choose another --output."
        )
    print(f"Skipped {handle}: {output} has a row of it. Delete the row to evaluate it again.")
    return True


def run():
    handles = list(dict.fromkeys(FLAGS.preset))
    if not handles:
        raise ValueError("--preset must list one or more models. Received: none")
    for handle in handles:
        with of_flag("preset", handle):  # before hours of work on the others
            presets.find_preset(handle, load_weights=False)
    output = pathlib.Path(os.path.expanduser(FLAGS.output))
    with of_flag("data_dir", FLAGS.data_dir):
        images = open_images(FLAGS.data_dir)
    settings = row_settings(FLAGS, images)
    with of_flag("output", output):
        rows = read_rows(output)
        check_rows(rows, settings, bool(FLAGS.real_labels))
        check_file(output)
    if FLAGS.class_report:
        with of_flag("class_report", FLAGS.class_report):
            for handle in handles:
                check_file(report_file(handle, "confusion.csv"))
    real_labels = None
    if FLAGS.real_labels:
        with of_flag("real_labels", FLAGS.real_labels):
            real_labels = read_real_labels(FLAGS.real_labels, images)
    for file in images.skipped:
        print(f"Skipped: {file} is not an image of a known format", file=sys.stderr)
    for handle in handles:
        if is_done(handle, rows, output):
            continue
        progress = Progress(
            output.with_name(f".{output.name}.progress"),
            {
                "preset": handle,
                "preset_files": files_of_preset(handle),
                **settings,
                "backend": keras.backend.backend(),
                "batch_size": FLAGS.batch_size,
                "real_labels": FLAGS.real_labels,
            },
        )
        counts, classifier = count_answers(FLAGS, handle, images, real_labels, progress)
        rows.append(build_row(handle, counts, images, settings))
        if FLAGS.class_report:
            # If a picture fails, the progress file has all counts: the next run draws it again.
            write_tables(handle, counts, images, classifier.labels)
            write_pictures(handle, counts, images, classifier)
        write_rows(output, rows)
        progress.remove()
        print("".join(f"{name}: {value}\n" for name, value in rows[-1].items() if value))
        keras.backend.clear_session(free_memory=True)


def main(_):
    try:
        run()
    except (ValueError, OSError) as error:
        sys.exit(f"Not evaluated. {error}")


if __name__ == "__main__":
    app.run(main)
