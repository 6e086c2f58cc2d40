"""tools/evaluate.py: accuracy on folders and sets of TensorFlow Datasets, and what is said of those
that cannot be evaluated.
"""

import csv
import errno
import importlib.util
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf
from PIL import Image

from keras_deit import presets
from keras_deit.models import DeiTImageClassifier
from tests.helpers import randomize, tiny_backbone, tiny_classifier, unseen_digits
from tests.scripts import ROOT, load_script, run_script, set_flags

tool = load_script("tools/evaluate.py")

DIGITS = "deit_nano_distilled_patch4_32_digits"


@pytest.fixture(scope="module")
def digits():
    """Those that the shipped model has never seen: (images (360, 8, 8), labels)."""
    images, labels = unseen_digits()
    return images[..., 0], labels


def write_folder(folder, images, class_names, suffix="png"):
    """A file for each image, in a folder of its class."""
    for number, (image, name) in enumerate(zip(images, class_names)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name / f"{number:03d}.{suffix}")
    return folder


@pytest.fixture
def val(digits, tmp_path):
    """30 digits."""
    images, labels = digits
    return write_folder(tmp_path / "val", images[:30], [str(label) for label in labels[:30]])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model of ten classes with random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(1)
    randomize(
        tiny_classifier({"num_layers": 1}, num_classes=10, labels=list("0123456789")), rng
    ).save_to_preset(folder)
    return folder


def run(data_dir, output, preset=DIGITS, **overrides):
    """The rows of the table."""
    run_script(tool, data_dir=str(data_dir), preset=str(preset), output=str(output), **overrides)
    with open(output, newline="") as stream:
        return list(csv.DictReader(stream))


def refusal(data_dir, output, preset=DIGITS, **overrides):
    with pytest.raises(SystemExit) as error:
        run(data_dir, output, preset, **overrides)
    return str(error.value)


def figures(row):
    return {name: value for name, value in row.items() if name != "images_per_second"}


def answers(images, preset=DIGITS):
    """What a model says of digits, without this tool."""
    classifier = DeiTImageClassifier.from_preset(preset)
    channels = classifier.backbone.image_shape[-1]
    return classifier.predict(np.repeat(images[..., None], channels, axis=-1), verbose=0).argmax(-1)


@pytest.mark.backend
def test_the_shipped_model_on_a_folder_of_digits(digits, tmp_path, capsys):
    images, labels = digits
    folder = write_folder(tmp_path / "val", images, [str(label) for label in labels])
    (row,) = run(folder, tmp_path / "new" / "table.csv")
    header, line = (tmp_path / "new" / "table.csv").read_text().splitlines()
    assert header.startswith("model_name,top1_acc(%),top5_acc(%),published_top1_acc(%),difference,")
    assert line.startswith(f"{DIGITS},97.222,100.000,,,,,,360,0,")  # 350 of 360, as README.md says
    assert float(row["images_per_second"]) > 0
    assert "360/360" in capsys.readouterr().out
    # It is there already, and under any other settings not the same.
    assert run(f"{folder}/", tmp_path / "new" / "table.csv") == [row]
    assert capsys.readouterr().out == (
        f"{tmp_path / 'new' / 'table.csv'} has {DIGITS} already. Delete its row to evaluate it "
        "again.\n"
    )
    assert refusal(folder, tmp_path / "new" / "table.csv", crop_ratio=0.9, dtype="bfloat16") == (
        f"Not evaluated. {tmp_path / 'new' / 'table.csv'} holds results of other images or "
        "settings. Give those to go on with it, or "
        f"another --output. Received: {DIGITS} with crop_ratio preset's, now 0.9; dtype preset's, "
        "now bfloat16"
    )
    next(folder.glob("*/*")).unlink()
    assert "with data folder:" in refusal(folder, tmp_path / "new" / "table.csv")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["table.csv"]


@pytest.mark.slow
def test_class_report(digits, tmp_path):
    images, labels = digits
    folder = write_folder(tmp_path / "val", images, [str(label) for label in labels])
    table, reports = tmp_path / "table.csv", tmp_path / "reports"
    run(folder, table, class_report=str(reports))
    logits = DeiTImageClassifier.from_preset(DIGITS).predict(images[..., None], verbose=0)
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels, logits.argmax(axis=-1)), 1)
    with open(reports / f"{DIGITS}_confusion.csv", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["class", *map(str, range(10))] == ["class", *(row[0] for row in rows[1:])]
    np.testing.assert_array_equal(np.array([row[1:] for row in rows[1:]], int), expected)
    with open(reports / f"{DIGITS}_classes.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(
        labels, logits.argmax(axis=-1)
    )
    assert [float(row["recall(%)"]) for row in rows] == sorted(
        float(f"{100 * value:.3f}") for value in recall
    )
    for row in rows:
        index = int(row["class"])
        assert (row["recall(%)"], row["precision(%)"], row["f1(%)"], row["images"]) == (
            *(f"{100 * values[index]:.3f}" for values in (recall, precision, f1)),
            str(support[index]),
        )
        wrong = expected[index] * (np.arange(10) != index)
        assert row["most_often_taken_for"] == (str(wrong.argmax()) if wrong.any() else "")
    # A table that has the model already has no answers for a report that is asked for later.
    shutil.rmtree(reports)
    assert refusal(folder, table, class_report=str(reports)) == (
        f"Not evaluated. {table} has {DIGITS} already, without a class report. Delete its row to "
        "evaluate it again, or give another --output."
    )


def test_the_figures_of_others_stand_beside_ours(val):
    set_flags(tool, data_dir=str(val), preset=DIGITS)
    images = tool.open_images(str(val))
    counts = {
        **tool.first_counts(),
        "seen": 50_003,
        "corrupt": 3,
        "top1": 36_068,
        "top5": 45_564,
        "real": 3,
        "real_images": 4,
    }
    row = tool.build_row("deit_tiny_patch16_224", counts, images)
    assert (
        ",".join(list(row.values())[:10])
        == "deit_tiny_patch16_224,72.136,91.128,72.202,-0.066,72.136,91.128,75.000,50000,3"
    )
    row = tool.build_row("deit3_huge_patch14_224", {**counts, "real_images": 0}, images)
    assert ",".join(list(row.values())[3:8]) == "85.2,-13.064,,,"


def test_the_table_of_deit_tf():
    with open(tool.DEIT_TF, newline="") as stream:
        rows = {row["model_name"]: row for row in csv.DictReader(stream)}
    assert set(rows) == {
        name
        for name, row in DeiTImageClassifier.presets.items()
        if row["version"] == "deit" and "top1" in row
    }
    for name, row in rows.items():
        assert float(row["top1_acc(%)"]) == pytest.approx(
            DeiTImageClassifier.presets[name]["top1"], abs=0.07
        )
        assert float(row["top5_acc(%)"]) > float(row["top1_acc(%)"])


def test_webp_is_an_image_and_a_tilde_the_home_directory(val, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for file in sorted(val.glob("*/*.png"))[::2]:
        Image.open(file).save(file.with_suffix(".webp"), lossless=True)
        file.unlink()
    run_script(tool, data_dir="~/val", preset=DIGITS, output="~/table.csv", batch_size=4)
    with open(tmp_path / "table.csv", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["images"], row["corrupt_images"]) == ("30", "0")


@pytest.mark.slow
def test_what_is_no_image_is_named_and_counted(val, digits, tiny, tmp_path, capsys):
    images, labels = digits
    files = [val / str(label) / f"{number:03d}.png" for number, label in enumerate(labels[:30])]
    # Of the class that the model sees where there is nothing: as answers they would be right.
    (nothing,) = answers(np.zeros((1, 1, 1), "uint8"))
    cut, text = np.flatnonzero(labels[:30] == nothing)[:2]
    files[cut].write_bytes(files[cut].read_bytes()[:-30])
    files[text].write_text("no image")
    (val / "0" / "notes.txt").write_text("no image either")
    (row,) = run(val, tmp_path / "table.csv", batch_size=4)
    assert (row["images"], row["corrupt_images"]) == ("28", "3")
    good = [number for number in range(30) if number not in (cut, text)]
    hits = answers(images[good]) == labels[good]
    assert row["top1_acc(%)"] == f"{100 * hits.mean():.3f}"
    messages = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("Not read: ")
    ]
    assert sorted(message.split(": ")[1] for message in messages) == sorted(
        [str(val / "0" / "notes.txt"), str(files[cut]), str(files[text])]
    )
    for file in files:
        file.write_text("no image")
    assert (
        refusal(val, tmp_path / "none.csv", tiny)
        == "Not evaluated. None of the 30 images could be read."
    )
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("ended", [1, 5])
def test_stopped_and_started_again_it_ends_with_the_same_figures(
    ended, val, tiny, tmp_path, monkeypatch, capsys
):
    next(val.glob("*/001.png")).write_text("no image")
    expected = run(val, tmp_path / "unbroken.csv", tiny, batch_size=4)
    monkeypatch.setattr(tool, "BATCHES_BETWEEN_SAVES", 2)
    update = keras.utils.Progbar.update

    def stop(self, current, values=None, finalize=None):
        if self.target == 30 and current == min(4 * ended, 30):
            raise KeyboardInterrupt
        update(self, current, values, finalize)

    monkeypatch.setattr(keras.utils.Progbar, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        run(val, tmp_path / "broken.csv", tiny, batch_size=4)
    assert not (tmp_path / "broken.csv").exists()
    assert (tmp_path / ".broken.csv.progress").exists() == (ended > 1)
    capsys.readouterr()
    monkeypatch.setattr(keras.utils.Progbar, "update", update)
    (row,) = run(val, tmp_path / "broken.csv", tiny, batch_size=4)
    assert f"from image {1 + 8 * (ended // 2)} of 30" in capsys.readouterr().out
    assert figures(row) == figures(expected[0])
    assert not (tmp_path / ".broken.csv.progress").exists()


def test_counts_of_another_run_are_not_gone_on_with(val, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "BATCHES_BETWEEN_SAVES", 1)
    with monkeypatch.context() as patch:
        patch.setattr(tool, "build_row", lambda *_: sys.exit("stopped"))
        assert refusal(val, tmp_path / "table.csv", tiny, batch_size=16) == "stopped"
    assert json.loads((tmp_path / ".table.csv.progress").read_text())["counts"]["seen"] == 16
    capsys.readouterr()
    run(val, tmp_path / "table.csv", tiny, batch_size=32)
    assert "from image 1 of 30" in capsys.readouterr().out


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A folder with an image for each of ImageNet's classes, and a model that says tench, goldfish,
    ... whatever it sees.
    """
    folder = tmp_path_factory.mktemp("imagenet")
    content = io.BytesIO()
    Image.new("RGB", (3, 4)).save(content, "JPEG")
    for number, synset in enumerate(presets.imagenet_synsets()):
        (folder / "val" / synset).mkdir(parents=True)
        (folder / "val" / synset / f"ILSVRC2012_val_{50_000 - number:08d}.JPEG").write_bytes(
            content.getvalue()
        )
    keras.utils.set_random_seed(1)
    classifier = tiny_classifier(
        {"num_layers": 1, "use_distillation_token": False},
        num_classes=1000,
        labels=presets.imagenet_labels(),
    )
    kernel, bias = classifier.head.weights
    kernel.assign(np.zeros(kernel.shape))
    bias.assign(-np.arange(1000))
    classifier.save_to_preset(folder / "model")
    return folder


def write_real_labels(path, **lists):
    content = [[]] * 50_000
    for number, classes in lists.items():
        content[int(number.removeprefix("image_")) - 1] = classes
    path.write_text(json.dumps(content))
    return path


def test_imagenet_and_real_labels(imagenet, tmp_path):
    real = write_real_labels(
        tmp_path / "real.json", image_50000=[7], image_49999=[0], image_49001=[0, 999], image_1=[0]
    )
    (row,) = run(
        imagenet / "val",
        tmp_path / "table.csv",
        imagenet / "model",
        real_labels=real,
        batch_size=200,
    )
    assert (row["top1_acc(%)"], row["top5_acc(%)"], row["real_acc(%)"]) == (
        "0.100",
        "0.500",
        "66.667",
    )
    assert (row["images"], row["corrupt_images"]) == ("1000", "0")
    # A table has ReaL accuracy in each of its rows or in none.
    text = (tmp_path / "table.csv").read_text().replace("66.667", "")
    (tmp_path / "table.csv").write_text(text)
    assert "model with no ReaL accuracy" in refusal(
        imagenet / "val", tmp_path / "table.csv", imagenet / "model", real_labels=real
    )


def test_real_labels_that_are_none(imagenet, val, tmp_path):
    def said(path, folder=imagenet / "val"):
        return refusal(
            folder, tmp_path / "table.csv", imagenet / "model", real_labels=path
        ).removeprefix("Not evaluated. ")

    assert (
        said(tmp_path / "real.json", val)
        == "--real_labels are of ImageNet's validation set, with its 1000 synsets as classes."
    )
    assert "No such file or directory" in said(tmp_path / "real.json")
    (tmp_path / "real.json").write_text("[[1], [")
    assert said(tmp_path / "real.json").startswith(
        f"{tmp_path / 'real.json'} is not JSON. Download real.json again. "
    )
    for content in ([[0]] * 49_999, [[0]] * 49_999 + [[1000]], [[0]] * 49_999 + [0], {"0": [1]}):
        (tmp_path / "real.json").write_text(json.dumps(content))
        assert said(tmp_path / "real.json") == (
            f"{tmp_path / 'real.json'} must hold 50000 lists of classes from 0 to 999, as "
            "real.json of "
            "google-research/reassessed-imagenet."
        )
    other = tmp_path / "others"
    for synset in presets.imagenet_synsets():
        (other / synset).mkdir(parents=True)
        (other / synset / f"{synset}_1.JPEG").touch()
    assert said(write_real_labels(tmp_path / "real.json"), other) == (
        "With --real_labels the images must have the names of ImageNet's validation set, "
        "ILSVRC2012_val_00000001.JPEG to "
        "ILSVRC2012_val_00050000.JPEG. Received: "
        + ", ".join(
            str(other / synset / f"{synset}_1.JPEG") for synset in presets.imagenet_synsets()[:5]
        )
        + ", ..."
    )


def test_synsets_are_in_the_order_of_the_labels():
    synsets = presets.imagenet_synsets()
    assert len(set(synsets)) == 1000
    assert list(synsets) == sorted(synsets)
    names = dict(zip(synsets, presets.imagenet_labels()))
    assert names["n02012849"] == names["n03126707"] == "crane"  # a bird and a machine
    assert (names["n01440764"], names["n15075141"][:13]) == ("tench, Tinca tinca", "toilet tissue")
    # TensorFlow Datasets' list is in another order.
    package = pathlib.Path(importlib.util.find_spec("tensorflow_datasets").origin).parent
    others = (package / "image_classification" / "imagenet_resized_labels.txt").read_text().split()
    assert sorted(others) == list(synsets)


def test_classes_are_found_by_name(digits, tiny, tmp_path):
    """Folders are in alphabetical order, which is not that of the labels."""
    images, labels = digits
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    DeiTImageClassifier.from_preset(tiny, labels=names).save_to_preset(tmp_path / "named")
    folder = write_folder(tmp_path / "val", images[:30], [names[label] for label in labels[:30]])
    (row,) = run(folder, tmp_path / "table.csv", tmp_path / "named")
    assert row["top1_acc(%)"] == f"{100 * np.mean(answers(images[:30], tiny) == labels[:30]):.3f}"


def test_classes_of_another_model(val, imagenet, tmp_path):
    (val / "9").rename(val / "nine")
    assert refusal(val, tmp_path / "table.csv") == (
        f"Not evaluated. The images must be of the classes of {DIGITS}, its labels, 10 in number. "
        "Rename the folders, or give the model "
        "that belongs to them. Received: 10 classes; missing 9; unknown nine"
    )
    assert refusal(val, tmp_path / "table.csv", imagenet / "model") == (
        f"Not evaluated. The images must be of the classes of {imagenet / 'model'}, the synsets of "
        "ImageNet, 1000 in number. Rename the "
        "folders, or give the model that belongs to them. Received: 10 classes; "
        "missing n01440764, n01443537, n01484850, n01491361, n01494475, ...; unknown 0, 1, 2, 3, "
        "4, ..."
    )
    tiny_classifier(num_classes=10, labels=None).save_to_preset(tmp_path / "nameless")
    assert refusal(val, tmp_path / "table.csv", tmp_path / "nameless") == (
        f"Not evaluated. {tmp_path / 'nameless'} does not say which classes its outputs are. Save "
        "it again with its labels: "
        "`DeiTImageClassifier.from_preset(handle, labels=[...]).save_to_preset(directory)`."
    )
    (val / "0" / "empty").mkdir()
    for file in (val / "1").iterdir():
        file.unlink()
    assert "Every class must have images" in refusal(val, tmp_path / "table.csv")
    assert not (tmp_path / "table.csv").exists()


@pytest.mark.slow
def test_what_cannot_be_evaluated(val, tmp_path):
    output = tmp_path / "table.csv"
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("L", (2, 2)).save(flat / "ILSVRC2012_val_00000001.JPEG")
    tiny_backbone().save_to_preset(tmp_path / "backbone")
    labels = list("0123456789")
    tiny_classifier(num_classes=10, labels=labels, preprocessor=None).save_to_preset(
        tmp_path / "unprepared"
    )
    broken = tiny_classifier(num_classes=10, labels=labels)
    broken.head.weights[0].assign(np.full(broken.head.weights[0].shape, np.nan))
    broken.save_to_preset(tmp_path / "broken")
    for message, arguments in {
        f"There is no folder {tmp_path / 'none'}.": (tmp_path / "none", output),
        f"There is no folder {flat / 'ILSVRC2012_val_00000001.JPEG'}.": (
            flat / "ILSVRC2012_val_00000001.JPEG",
            output,
        ),
        f"{flat} must have a subfolder of images for each class. ImageNet's": (flat, output),
        "and 'deit_tiny' is neither a name nor an existing path.": (
            val,
            output,
            f"{DIGITS},deit_tiny",
        ),
        "--preset must name a model, or several with commas between them. Received: none": (
            val,
            output,
            "",
        ),
        "is a backbone without a head.": (val, output, tmp_path / "backbone"),
        "Save it with a `DeiTImageConverter` as its `preprocessor`. Received: preprocessor=None": (
            val,
            output,
            tmp_path / "unprepared",
        ),
        f"{tmp_path / 'broken'} answers with NaN. Give another --dtype.": (
            val,
            output,
            tmp_path / "broken",
        ),
        "Is a directory": (val, tmp_path),
    }.items():
        assert message in refusal(*arguments), message
    assert "`crop_ratio` must be in (0, 1]" in refusal(val, output, crop_ratio=1.5)
    assert "float33" in refusal(val, output, dtype="float33")
    assert not output.exists()
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_is_no_table_stays(val, tmp_path):
    for content in (b"model_name,top1_acc(%)\na,1.0\n", b"\x89PNG\r\n\xff\x00"):
        (tmp_path / "table.csv").write_bytes(content)
        assert refusal(val, tmp_path / "table.csv") == (
            f"Not evaluated. {tmp_path / 'table.csv'} exists, and is not a table of this program. "
            "Give another --output."
        )
        assert (tmp_path / "table.csv").read_bytes() == content


@pytest.mark.slow
def test_on_a_full_disk_the_table_stays_as_it_was(val, tiny, tmp_path, monkeypatch):
    run(val, tmp_path / "table.csv", tiny)
    before = (tmp_path / "table.csv").read_text()
    shutil.copytree(tiny, tmp_path / "copy")

    def write_half(path, text):
        with open(path, "w") as stream:
            stream.write(text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", write_half)
    assert (
        refusal(val, tmp_path / "table.csv", tmp_path / "copy")
        == "Not evaluated. [Errno 28] No space left on device"
    )
    monkeypatch.undo()
    assert (tmp_path / "table.csv").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "table.csv", "val"]
    # With room again, it goes on.
    rows = run(val, tmp_path / "table.csv", f"{tiny},{tmp_path / 'copy'}")
    assert [row["model_name"] for row in rows] == [str(tiny), str(tmp_path / "copy")]
    assert [row["top1_acc(%)"] for row in rows] == [rows[0]["top1_acc(%)"]] * 2


def read_one(path, channels=3):
    """(the image, why it could not be read)."""
    unread = {}
    read = tool.image_reader(channels, [0], True, unread)
    dataset = tf.data.Dataset.from_tensors((str(path), 0)).enumerate()
    ((image, _),) = dataset.map(lambda *element: read(element)).as_numpy_iterator()
    return image, unread.get(0)


def test_photographs_are_read_to_the_bit(photographs, tmp_path):
    """By Pillow; TensorFlow agrees where it is asked to be accurate."""
    for number, photograph in enumerate(photographs):
        path = tmp_path / f"{number}.JPEG"
        Image.fromarray(photograph).save(path, quality=90)
        image, reason = read_one(path)
        assert reason is None
        content = path.read_bytes()
        np.testing.assert_array_equal(
            image, tf.io.decode_jpeg(content, 3, dct_method="INTEGER_ACCURATE").numpy()
        )
        path.write_bytes(content[: len(content) // 2])
        image, reason = read_one(path)
        assert image.shape == (1, 1, 3)
        assert reason.startswith("OSError: image file is truncated")


def test_images_of_every_kind(tmp_path):
    red = np.zeros((6, 9, 3), "uint8") + np.array([200, 30, 10], "uint8")
    image = Image.fromarray(red)

    def read(name, picture, channels=3, **options):
        picture.save(tmp_path / name, **options)
        found, reason = read_one(tmp_path / name, channels)
        assert reason is None
        return found

    def close(found, expected):
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() <= 3

    close(read("cmyk.JPEG", image.convert("CMYK"), quality=100), red)
    close(read("plain.JPEG", image, quality=100), red)
    read("a.png", image)
    (tmp_path / "a.png").rename(tmp_path / "png.JPEG")  # ImageNet has one
    np.testing.assert_array_equal(read_one(tmp_path / "png.JPEG")[0], red)
    gray = image.convert("L")
    np.testing.assert_array_equal(
        read("gray.png", gray), np.repeat(np.asarray(gray)[..., None], 3, axis=-1)
    )
    np.testing.assert_array_equal(read("color.png", image, channels=1), np.asarray(gray)[..., None])
    alpha = image.convert("RGBA")
    alpha.putalpha(100)
    np.testing.assert_array_equal(read("alpha.png", alpha), red)
    turned = Image.Exif()
    turned[0x0112] = 6  # by a quarter, which the official evaluation does not look at
    close(read("turned.JPEG", image, exif=turned, quality=100), red)
    assert read("one.png", Image.new("RGB", (1, 1))).shape == (1, 1, 3)
    assert read("long.png", Image.new("L", (20_000, 200)), channels=1).shape == (200, 20_000, 1)
    Image.new("L", (20_000, 199)).save(tmp_path / "long.png")
    assert (
        read_one(tmp_path / "long.png")[1]
        == "ValueError: an image of 20000 x 199 pixels is too long"
    )
    assert "No such file" in read_one(tmp_path / "none.png")[1]
    (tmp_path / "empty.png").touch()
    assert "cannot identify image file" in read_one(tmp_path / "empty.png")[1]


@pytest.mark.slow
def test_sets_of_tensorflow_datasets(digits, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    tfds = pytest.importorskip("tensorflow_datasets")
    images, labels = digits

    class UnseenDigits(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 1)),
                "label": tfds.features.ClassLabel(names=list("0123456789")),
                "file_name": tfds.features.Text(),
            }
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
            )

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for number in range(30):
                image = images[number][..., None]
                yield (
                    number,
                    {"image": image, "label": labels[number], "file_name": f"{number}.png"},
                )

    class WithoutClasses(UnseenDigits):
        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 1)),
                "label": tfds.features.Scalar(np.int64),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    (row,) = run("tfds:unseen_digits", tmp_path / "table.csv", tiny, batch_size=8)
    assert (row["images"], row["data"]) == ("30", "unseen_digits/1.0.0:test")
    assert row["top1_acc(%)"] == f"{100 * np.mean(answers(images[:30], tiny) == labels[:30]):.3f}"
    assert set(tool.open_images("tfds:unseen_digits").names) == {
        f"{number}.png" for number in range(30)
    }
    assert "is not of images with one class each" in refusal(
        "tfds:without_classes", tmp_path / "table.csv"
    )
    assert "nothing_such" in refusal("tfds:nothing_such", tmp_path / "none.csv")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert refusal("tfds:unseen_digits", tmp_path / "none.csv") == (
        "Not evaluated. Reading tfds:unseen_digits takes TensorFlow Datasets: pip install "
        "tensorflow-datasets."
    )


@pytest.mark.backend
@pytest.mark.process
def test_on_the_command_line(val, tmp_path):
    result = subprocess.run(
        [
            sys.executable,
            ROOT / "tools" / "evaluate.py",
            f"--data_dir={val}",
            f"--preset={DIGITS}",
            f"--output={tmp_path / 'table.csv'}",
            "--crop_ratio=0",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert result.returncode == 1
    assert "\nNot evaluated. `crop_ratio` must be " in "\n" + result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["val"]
