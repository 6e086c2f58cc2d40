"""The tables and pictures of --class_report."""

import csv
import pathlib
import shutil
import sys

import keras
import numpy as np
import pytest
import sklearn.metrics
from matplotlib.text import Text

from keras_deit.models import DeiTImageClassifier
from keras_deit.presets import imagenet_labels
from tests.tools.evaluate.helpers import DIGITS, refusal, run, tool, write_folder

worst_images = sys.modules["evaluation.worst_images"]
shortened = sys.modules["evaluation.labels"].shortened


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
    assert_worst(reports, images, labels, logits)
    # The predictions are not kept: a report of a model in the table needs another evaluation.
    shutil.rmtree(reports)
    assert refusal(folder, table, class_report=str(reports)) == (
        f"Not evaluated. --class_report: {table} has a row of {DIGITS} already, but there is no "
        "report of it. Delete the row to evaluate the model again, or choose another --output."
    )


def assert_worst(reports, images, labels, logits):
    """The 24 images with the highest cross-entropy are in the table, and in a picture."""
    losses = np.log(np.exp(logits.astype("float64")).sum(axis=-1)) - logits[range(360), labels]
    with open(reports / f"{DIGITS}_worst.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    expected = np.argsort(-losses)[:24]
    assert [pathlib.Path(row["file"]).name for row in rows] == [f"{i:03d}.png" for i in expected]
    for row, index in zip(rows, expected):
        answer = logits[index].argmax()
        assert (row["class"], row["prediction"]) == (str(labels[index]), str(answer))
        assert float(row["loss"]) == pytest.approx(losses[index], abs=1e-3)
        probability = np.exp(logits[index] - logits[index].max())
        assert float(row["probability(%)"]) == pytest.approx(100 / probability.sum(), abs=0.01)
    for name in ("confusion", "worst"):
        assert (reports / f"{DIGITS}_{name}.png").read_bytes().startswith(b"\x89PNG")


def test_worst_images_of_several_batches():
    worst, rng = [], np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 60)
    labels = rng.integers(0, 4, 60)
    probabilities[7, labels[7]] = 0.0  # an infinite loss
    for start in range(0, 60, 25):
        rows = slice(start, start + 25)
        numbers = np.arange(60)[rows]
        worst_images.keep_worst(worst, numbers, probabilities[rows], labels[rows])
    order = np.argsort(probabilities[range(60), labels])[:24]
    assert [number for _, number, *_ in worst] == order.tolist()
    assert worst[0][1] == 7 and np.isfinite(worst[0][0])
    assert [row[2:4] for row in worst] == [[labels[i], probabilities[i].argmax()] for i in order]


@pytest.mark.backend
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_worst_images_are_shown_as_the_model_sees_them(data_format, val, tiny):
    classifier = DeiTImageClassifier.from_preset(tiny, data_format=data_format)
    opened = tool.open_images(str(val))
    worst = [[1.0, 3, 0, 0, 0.5], [0.5, 1, 0, 0, 0.5]]
    found = worst_images.seen_images(worst, opened, classifier)
    for pixels, (_, number, *_) in zip(found, worst):
        raw = keras.utils.img_to_array(keras.utils.load_img(opened.files[number]))
        raw = raw.transpose(2, 0, 1) if data_format == "channels_first" else raw
        seen = keras.ops.convert_to_numpy(classifier.preprocessor(raw[None]))[0]
        seen = seen.transpose(1, 2, 0) if data_format == "channels_first" else seen
        std, mean = classifier.preprocessor.std, classifier.preprocessor.mean
        assert pixels.shape == (12, 32, 3)
        np.testing.assert_allclose(pixels, (seen * std + mean).clip(0, 1), atol=1e-6)


def texts(axis):
    return [text.get_text() for text in axis.texts]


@pytest.mark.parametrize("count", [2, 30])
def test_confusion_matrix_with_all_its_numbers(count, tmp_path):
    matrix = np.random.default_rng(0).integers(0, 3, (count, count)) * 7
    figure = tool.plot_confusion(matrix, [f"class {index}" for index in range(count)])
    (axis,) = figure.axes
    assert texts(axis) == [str(images) for images in matrix[matrix > 0]]
    assert [label.get_text() for label in axis.get_yticklabels()][-1] == f"class {count - 1}"
    assert axis.get_title() == f"{matrix.trace():,} of {matrix.sum():,} images are correct"
    # Rows are classes: the colour of a cell is its share of the row.
    colours = axis.images[0].get_array()
    empty = matrix == 0
    assert (colours[empty] == 1).all() and (colours[~empty].min(axis=-1) < 1).all()
    figure.savefig(tmp_path / "matrix.png")


def test_pairs_of_many_classes(tmp_path):
    matrix = 50 * np.eye(1000, dtype=int)
    matrix[2, 3], matrix[7, 1], matrix[1, 7] = 5, 9, 2
    labels = imagenet_labels()
    (axis,) = tool.plot_confusion(matrix, labels).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        f"{shortened(labels[row])} → {shortened(labels[column])}"
        for row, column in ((7, 1), (2, 3), (1, 7))
    ]
    assert [text.strip() for text in texts(axis)] == ["9 of 59", "5 of 55", "2 of 52"]
    figure = tool.plot_confusion(50 * np.eye(1000, dtype=int), labels)  # nothing is confused
    figure.savefig(tmp_path / "nothing.png")


def test_shortened_labels():
    assert shortened("tench, Tinca tinca") == "tench, Tinca tinca"
    assert shortened("great white shark, white shark, man-eater") == "great white shark"
    assert shortened("x" * 25) == "x" * 22 + "..."


@pytest.mark.parametrize("count", [3, 31])
def test_labels_are_plain_text(count, tmp_path):
    """A label with two $ was read as a formula, and a bad formula ended the program."""
    labels = ["$x^$", "$a$", *(f"class {index}" for index in range(2, count))]
    matrix = np.eye(count, dtype=int)
    matrix[0, 1] = matrix[1, 0] = 2
    worst = [[1.0, 0, 0, 1, 0.5], [1.0, 1, 1, 0, 0.5]]
    for figure in (
        tool.plot_confusion(matrix, labels),
        worst_images.plot_worst(worst, np.zeros((2, 8, 12, 3)), labels),
    ):
        figure.savefig(tmp_path / "picture.png")
        shown = [text for text in figure.findobj(Text) if "$" in text.get_text()]
        assert len(shown) > 1 and not any(text.get_parse_math() for text in shown)


def test_a_report_that_cannot_be_written_is_refused_before_the_evaluation(
    val, tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(tool, "count_answers", None)
    (tmp_path / "file").touch()
    start = f"The folder {tmp_path / 'file'} cannot be created or written. Use another path. "
    assert refusal(val, tmp_path / "table.csv", tiny, class_report=tmp_path / "file").startswith(
        f"Not evaluated. --class_report {tmp_path / 'file'}: {start}"
    )
    assert refusal(val, tmp_path / "file" / "table.csv", tiny).startswith(
        f"Not evaluated. --output {tmp_path / 'file' / 'table.csv'}: {start}"
    )


def test_a_picture_that_fails_is_drawn_by_the_next_run(val, tiny, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("no picture")

    table, reports = tmp_path / "table.csv", tmp_path / "reports"
    with monkeypatch.context() as patch:
        patch.setattr(tool, "plot_confusion", fail)
        assert refusal(val, table, tiny, class_report=reports) == "Not evaluated. no picture"
    assert not table.exists()
    capsys.readouterr()
    (row,) = run(val, table, tiny, class_report=reports)
    assert ": image" not in capsys.readouterr().out  # nothing was evaluated again
    assert row["model_name"] == str(tiny)
    assert sum(file.suffix == ".png" for file in reports.iterdir()) == 2
