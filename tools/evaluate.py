"""Evaluates classifiers as the official code of DeiT does, and writes a table of them.

    pip install ".[evaluate]"
    python tools/evaluate.py --data_dir imagenet/val --preset
    deit_tiny_patch16_224,deit3_small_patch16_224 python tools/evaluate.py --data_dir imagenet/val
    --preset deit_tiny_patch16_224 --real_labels real.json --output real.csv python
    tools/evaluate.py --data_dir photos/val --preset my_preset --output mine.csv --class_report mine
    python tools/evaluate.py --data_dir tfds:imagenet2012 --preset deit_tiny_patch16_224 --dtype
    bfloat16 --output bfloat16.csv

`val` has a folder of images for each class. For ImageNet's models they are named by synset,
n01440764 to n15075141; for others as the model's labels. `tfds:NAME` is a set of TensorFlow
Datasets, its split `validation` or else `test`. `real.json` is
google-research/reassessed-imagenet's.

Pillow reads the images, converted to RGB and not rotated by their EXIF, as in the official code.
Files that cannot be read are named and counted, and no part of the accuracy. In the table the
published top-1 stands beside ours, and sayakpaul/deit-tf's figures for the same weights (i1k_eval
at 79cc91d). `--crop_ratio 0.9` is timm's evaluation, which differs from the published.

`--class_report` names a folder for two more tables of each model: `<preset>_classes.csv` with
recall, precision and F1 of each class, the worst first, and `<preset>_confusion.csv`, the number of
images by class and answer.

Killed at any moment and started again with the same flags, it goes on, and ends with the accuracy
that it would have had; models that the table has are not evaluated again. `images_per_second` is of
reading, converting and predicting together, but for the first batch, which compiles.
"""

import csv
import dataclasses
import hashlib
import io
import json
import operator
import os
import pathlib
import re
import sys
import time

# Less of TensorFlow's log among what this prints
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags
from class_report import class_table, confusion_matrix, matrix_table
from PIL import Image

from keras_deit import presets
from keras_deit.layers import DeiTImageConverter
from keras_deit.models import DeiTImageClassifier
from keras_deit.training.batches import evaluation_batches
from keras_deit.training.image_folder import FORMATS, ImageFolder

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "data_dir",
    None,
    "Folder with a subfolder of images for each class, or tfds:NAME.",
    required=True,
)
flags.DEFINE_list(
    "preset", None, "Names, hf:// addresses or folders of classifiers.", required=True
)
flags.DEFINE_string("output", "evaluation.csv", "Table to write, or to go on with.")
flags.DEFINE_string("real_labels", None, "real.json: ReaL accuracy as well.")
flags.DEFINE_string(
    "class_report", None, "Folder for a table of the classes and a confusion matrix of each model."
)
flags.DEFINE_float(
    "crop_ratio", None, "Share of the resized image that is seen. Default: the preset's."
)
flags.DEFINE_string("dtype", None, "Such as bfloat16. Default: the preset's.")
flags.DEFINE_integer("batch_size", 64, "Images in a batch.", 1)

COLUMNS = (
    "model_name",
    "top1_acc(%)",
    "top5_acc(%)",
    "published_top1_acc(%)",
    "difference",
    "deit_tf_top1_acc(%)",
    "deit_tf_top5_acc(%)",
    "real_acc(%)",
    "images",
    "corrupt_images",
    "images_per_second",
    "data",
    "crop_ratio",
    "dtype",
)
DEIT_TF = pathlib.Path(__file__).with_name("deit_tf.csv")
BATCHES_BETWEEN_SAVES = 20
# Times as long as wide: resized to cover the model's image, a longer one would fill the memory
LONGEST = 100


@dataclasses.dataclass(frozen=True)
class Images:
    """What is evaluated on.

    Args:
        dataset: `tf.data.Dataset` of (name of a file, or its bytes; label).
        names: of the images, in that order.
        class_names: in the order of the labels.
        identity: what tells these images from others, for the table: of a folder, a digest of names
            and sizes.
        are_files: whether the dataset is of names.
        others: names of the files in the folder that are of no format that is read.
    """

    dataset: object
    names: tuple
    class_names: tuple
    identity: str
    are_files: bool
    others: tuple = ()


def open_images(data_dir):
    return (
        open_tfds(data_dir)
        if data_dir.startswith("tfds:")
        else open_folder(os.path.expanduser(data_dir))
    )


def open_folder(directory):
    if os.path.isdir(directory) and not any(
        entry.is_dir() for entry in pathlib.Path(directory).iterdir()
    ):
        raise ValueError(
            f"{directory} must have a subfolder of images for each class. ImageNet's validation "
            "images come without: move each to the "
            "folder of its synset, such as n01440764. Received: no subfolders"
        )
    folder = ImageFolder.open(directory)
    listing = "".join(
        f"{os.path.relpath(file, directory)} {os.path.getsize(file)}\n" for file in folder.files
    )
    return Images(
        folder.dataset(),
        folder.files,
        folder.class_names,
        f"folder:{hashlib.sha256(listing.encode()).hexdigest()[:12]}",
        are_files=True,
        others=folder.skipped,
    )


def open_tfds(name):
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            f"Reading {name} takes TensorFlow Datasets: pip install tensorflow-datasets."
        ) from error
    builder = tfds.builder(name.removeprefix("tfds:"))
    image, label = builder.info.supervised_keys or (None, None)
    if label is None or not isinstance(builder.info.features[label], tfds.features.ClassLabel):
        raise ValueError(
            f"{name} is not of images with one class each. Received: {builder.info.features}"
        )
    try:
        builder.download_and_prepare()
    except AssertionError as error:  # what has to be downloaded by hand is not there
        raise ValueError(str(error)) from error
    split = "validation" if "validation" in builder.info.splits else "test"
    if split not in builder.info.splits:
        raise ValueError(
            f"{name} must have a split `validation` or `test`. Received: "
            f"{', '.join(builder.info.splits)}"
        )
    dataset = builder.as_dataset(
        split=split, decoders={image: tfds.decode.SkipDecoding()}, shuffle_files=False
    )
    identity = f"{builder.info.full_name}:{split}"
    names = tuple(f"{identity}[{number}]" for number in range(len(dataset)))
    if "file_name" in builder.info.features:  # ImageNet's sets have it
        names = tuple(
            os.fsdecode(each)
            for each in dataset.map(operator.itemgetter("file_name")).as_numpy_iterator()
        )
    dataset = dataset.map(operator.itemgetter(image, label))
    return Images(
        dataset, names, tuple(builder.info.features[label].names), identity, are_files=False
    )


def read_real_labels(path, images):
    """For each image the classes that it shows, by Beyer et al., 2020: none, one or several."""
    if images.class_names != presets.imagenet_synsets():
        raise ValueError(
            "--real_labels are of ImageNet's validation set, with its 1000 synsets as classes."
        )
    found = [
        re.fullmatch(r"ILSVRC2012_val_(\d{8})\.\w+", os.path.basename(name))
        for name in images.names
    ]
    numbers = [int(match[1]) if match else 0 for match in found]
    others = [name for name, number in zip(images.names, numbers) if not 1 <= number <= 50_000]
    if others:
        raise ValueError(
            "With --real_labels the images must have the names of ImageNet's validation set, "
            "ILSVRC2012_val_00000001.JPEG to "
            f"ILSVRC2012_val_00050000.JPEG. Received: {some(others)}"
        )
    try:
        content = json.loads(pathlib.Path(os.path.expanduser(path)).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON. Download real.json again. {error}") from error
    if (
        not isinstance(content, list)
        or len(content) != 50_000
        or not all(map(are_classes, content))
    ):
        raise ValueError(
            f"{path} must hold 50000 lists of classes from 0 to 999, as real.json of "
            "google-research/reassessed-imagenet."
        )
    return [content[number - 1] for number in numbers]


def are_classes(content):
    return isinstance(content, list) and all(number in range(1000) for number in content)


def load_classifier(handle):
    overrides = {"dtype": FLAGS.dtype, "crop_ratio": FLAGS.crop_ratio}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    classifier = DeiTImageClassifier.from_preset(handle, **overrides)
    if not isinstance(classifier.preprocessor, DeiTImageConverter):
        raise ValueError(
            f"{handle} must say how images are converted for it. Save it with a "
            "`DeiTImageConverter` as its `preprocessor`. "
            f"Received: preprocessor={classifier.preprocessor!r}"
        )
    if num_channels(classifier) not in (1, 3):
        raise ValueError(
            f"Images are gray or RGB. Received: {handle}, for {num_channels(classifier)} channels"
        )
    return classifier


def num_channels(classifier):
    return classifier.backbone.image_shape[
        0 if classifier.backbone.data_format == "channels_first" else -1
    ]


def class_positions(handle, labels, class_names):
    """Where each class of the images stands among the model's.

    Raises:
        ValueError: the classes are not the model's.
    """
    if labels is None:
        raise ValueError(
            f"{handle} does not say which classes its outputs are. Save it again with its labels: "
            "`DeiTImageClassifier.from_preset(handle, labels=[...]).save_to_preset(directory)`."
        )
    # Not all of them, for some tell the two that are called "crane" apart.
    is_imagenet = (
        len(labels) == 1000
        and np.mean(np.array(labels) == np.array(presets.imagenet_labels())) > 0.99
    )
    expected = presets.imagenet_synsets() if is_imagenet else tuple(labels)
    if sorted(expected) != sorted(class_names):
        missing = [name for name in expected if name not in class_names]
        unknown = [name for name in class_names if name not in expected]
        raise ValueError(
            f"The images must be of the classes of {handle}, "
            f"{'the synsets of ImageNet' if is_imagenet else 'its labels'}, "
            f"{len(labels)} in number. Rename the folders, or give the model that belongs to them. "
            f"Received: {len(class_names)} classes; missing {some(missing)}; unknown "
            f"{some(unknown)}"
        )
    return [expected.index(name) for name in class_names]


def some(names):
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "none"


def image_reader(channels, positions, are_files, unread):
    """The `read` of `evaluation_batches`, from (number, (name or bytes, label)).

    What cannot be read is black, and `unread` gets its number and why.
    """
    import tensorflow as tf

    def open_image(number, source):
        try:
            with Image.open(os.fsdecode(source) if are_files else io.BytesIO(source)) as image:
                if max(image.size) > LONGEST * min(image.size):
                    raise ValueError(
                        f"an image of {image.width} x {image.height} pixels is too long"
                    )
                pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        except Exception as error:  # broken images fail in many ways
            unread[int(number)] = f"{type(error).__name__}: {error}"
            return np.zeros((1, 1, channels), "uint8")
        return pixels.reshape(*pixels.shape[:2], channels)

    def read(element):
        number, (source, label) = element
        image = tf.numpy_function(open_image, [number, source], tf.uint8)
        return tf.ensure_shape(image, (None, None, channels)), tf.gather(positions, label)

    return read


def evaluate(handle, images, real_labels, kept):
    """Counts the answers of a classifier.

    Args:
        kept: file of the counts so far, which a run that was killed has left, and this one leaves.

    Returns:
        Dictionary of counts, see `first_counts`, and the names of the model's classes.
    """
    classifier = load_classifier(handle)
    positions = class_positions(handle, classifier.labels, images.class_names)
    settings = {"preset": handle, **row_settings(images), "backend": keras.backend.backend()}
    settings |= {name: FLAGS[name].value for name in ("batch_size", "real_labels")}
    counts = first_counts()
    if kept.exists():
        before = json.loads(kept.read_text())
        if before["settings"] == settings:
            counts = before["counts"]
    start, end = counts["seen"], len(images.names)
    unread = {}
    read = image_reader(num_channels(classifier), positions, images.are_files, unread)
    # The batches are converted already
    converter, classifier.preprocessor = classifier.preprocessor, None
    rest = images.dataset.enumerate().skip(start)
    batches = evaluation_batches(rest, converter, classifier.num_classes, FLAGS.batch_size, read)
    print(f"{handle}, from image {start + 1} of {end}")
    progress = keras.utils.Progbar(end - start, stateful_metrics=["top-1 (%)"], unit_name="image")
    clock = None
    for index, (inputs, labels, weights) in enumerate(batches.as_numpy_iterator(), start=1):
        logits = np.asarray(classifier.predict_on_batch(inputs), "float32")
        numbers = range(counts["seen"], counts["seen"] + int(weights.sum()))
        for number in numbers:
            if number in unread:
                counts["corrupt"] += 1
                print(f"\nNot read: {images.names[number]}: {unread[number]}", file=sys.stderr)
        good = [row for row, number in enumerate(numbers) if number not in unread]
        if np.isnan(logits[good]).any():
            raise ValueError(f"{handle} answers with NaN. Give another --dtype.")
        real = [real_labels[numbers[row]] for row in good] if real_labels else []
        add_answers(counts, logits[good], labels[good].argmax(axis=-1), real)
        now = time.perf_counter()
        if clock is not None:
            counts["timed_images"] += len(numbers)
            counts["seconds"] += now - clock
        clock = now
        counts["seen"] += len(numbers)
        if index % BATCHES_BETWEEN_SAVES == 0 and counts["seen"] < end:
            write(kept, json.dumps({"settings": settings, "counts": counts}))
        progress.update(
            counts["seen"] - start, [("top-1 (%)", 100 * share(counts["top1"], num_read(counts)))]
        )
    return counts, classifier.labels


def add_answers(counts, logits, labels, real):
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
    hits = best == labels[:, None]
    counts["top1"] += int(hits[:, 0].sum())
    counts["top5"] += int(hits.sum())
    counts["real"] += sum(int(answer) in classes for answer, classes in zip(best[:, 0], real))
    counts["real_images"] += sum(bool(classes) for classes in real)
    for pair in zip(labels.tolist(), best[:, 0].tolist()):
        pair = " ".join(map(str, pair))
        counts["answers"][pair] = counts["answers"].get(pair, 0) + 1


def first_counts():
    """Of images: seen, that could not be read, answered right; `real_images` are those that have
    ReaL labels; `answers`: see `class_report`.
    """
    names = ("seen", "corrupt", "top1", "top5", "real", "real_images", "timed_images", "seconds")
    return {**dict.fromkeys(names, 0), "answers": {}}


def num_read(counts):
    return counts["seen"] - counts["corrupt"]


def share(part, whole):
    return part / whole if whole else 0.0


def row_settings(images):
    """What a row says of how its figures came about."""
    given = {"crop_ratio": FLAGS.crop_ratio, "dtype": FLAGS.dtype}
    return {
        "data": images.identity,
        **{name: str("preset's" if value is None else value) for name, value in given.items()},
    }


def build_row(handle, counts, images):
    """From the counts to a row of the table."""
    if not num_read(counts):
        raise ValueError(f"None of the {len(images.names)} images could be read.")
    with open(DEIT_TF, newline="") as stream:
        deit_tf = {row["model_name"]: row for row in csv.DictReader(stream)}.get(handle, {})
    top1 = 100 * share(counts["top1"], num_read(counts))
    published = DeiTImageClassifier.presets.get(handle, {}).get("top1")
    return {
        "model_name": handle,
        "top1_acc(%)": f"{top1:.3f}",
        "top5_acc(%)": f"{100 * share(counts['top5'], num_read(counts)):.3f}",
        "published_top1_acc(%)": "" if published is None else f"{published:g}",
        "difference": "" if published is None else f"{top1 - published:+.3f}",
        "deit_tf_top1_acc(%)": deit_tf.get("top1_acc(%)", ""),
        "deit_tf_top5_acc(%)": deit_tf.get("top5_acc(%)", ""),
        "real_acc(%)": f"{100 * share(counts['real'], counts['real_images']):.3f}"
        if counts["real_images"]
        else "",
        "images": str(num_read(counts)),
        "corrupt_images": str(counts["corrupt"] + len(images.others)),
        "images_per_second": f"{counts['timed_images'] / counts['seconds']:.1f}"
        if counts["seconds"]
        else "",
        **row_settings(images),
    }


def read_rows(output):
    if not output.exists():
        return []
    text = output.read_text(errors="replace")
    if text.partition("\n")[0] != ",".join(COLUMNS):
        raise ValueError(
            f"{output} exists, and is not a table of this program. Give another --output."
        )
    return list(csv.DictReader(io.StringIO(text)))


def check_rows(output, rows, images):
    """A table goes on as it began.

    Raises:
        ValueError: its rows are of other images or settings, or have no ReaL accuracy where it is
            asked for.
    """
    expected = row_settings(images)
    for row in rows:
        changed = [
            f"{name} {row[name]}, now {value}"
            for name, value in expected.items()
            if row[name] != value
        ]
        if FLAGS.real_labels and not row["real_acc(%)"]:
            changed.append("no ReaL accuracy")
        if changed:
            raise ValueError(
                f"{output} holds results of other images or settings. Give those to go on with it, "
                "or another --output. "
                f"Received: {row['model_name']} with {'; '.join(changed)}"
            )


def write_rows(output, rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(output, text.getvalue())


def write_class_report(handle, answers, labels):
    matrix = confusion_matrix(answers, len(labels))
    for kind, table in (("classes", class_table), ("confusion", matrix_table)):
        write(report_file(handle, kind), table(matrix, labels))


def report_file(handle, kind):
    name = re.sub(r"[^\w.-]+", "_", handle).strip("_.")
    return pathlib.Path(os.path.expanduser(FLAGS.class_report)) / f"{name}_{kind}.csv"


def write(path, text):
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_text(text)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def run():
    handles = list(dict.fromkeys(FLAGS.preset))
    if not handles:
        raise ValueError(
            "--preset must name a model, or several with commas between them. Received: none"
        )
    for handle in handles:
        presets.find_preset(handle)  # a name that is wrong is said before hours of work
    output = pathlib.Path(os.path.expanduser(FLAGS.output))
    rows = read_rows(output)
    images = open_images(FLAGS.data_dir)
    check_rows(output, rows, images)
    real_labels = read_real_labels(FLAGS.real_labels, images) if FLAGS.real_labels else None
    for name in images.others:
        print(f"Not read: {name}: the name is not of a file {', '.join(FORMATS)}", file=sys.stderr)
    kept = output.with_name(f".{output.name}.progress")
    for handle in handles:
        if handle in [row["model_name"] for row in rows]:
            if FLAGS.class_report and not report_file(handle, "confusion").exists():
                raise ValueError(
                    f"{output} has {handle} already, without a class report. Delete its row to "
                    "evaluate it again, or give another --output."
                )
            print(f"{output} has {handle} already. Delete its row to evaluate it again.")
            continue
        counts, labels = evaluate(handle, images, real_labels, kept)
        rows.append(build_row(handle, counts, images))
        if FLAGS.class_report:
            write_class_report(handle, counts["answers"], labels)
        write_rows(output, rows)
        kept.unlink(missing_ok=True)
        print("".join(f"{name}: {value}\n" for name, value in rows[-1].items() if value))
        keras.backend.clear_session(free_memory=True)


def main(_):
    try:
        run()
    except (ValueError, OSError) as error:
        sys.exit(f"Not evaluated. {error}")


if __name__ == "__main__":
    app.run(main)
