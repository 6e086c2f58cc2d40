"""The tables of --class_report."""

import csv
import shutil

import numpy as np
import pytest
import sklearn.metrics

from keras_deit.models import DeiTImageClassifier
from tests.tools.evaluate.helpers import DIGITS, refusal, run, write_folder


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
    # The predictions are not kept: a report of a model in the table needs another evaluation.
    shutil.rmtree(reports)
    assert refusal(folder, table, class_report=str(reports)) == (
        f"Not evaluated. --class_report: {table} has a row of {DIGITS} already, but there is no "
        "report of it. Delete the row to evaluate the model again, or choose another --output."
    )
