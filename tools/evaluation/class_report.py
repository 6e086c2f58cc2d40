"""Which classes a classifier knows, and which it confuses: the tables of --class_report."""

import csv
import io

import numpy as np

COLUMNS = ("class", "images", "recall(%)", "precision(%)", "f1(%)", "most_often_taken_for")


def confusion_matrix(answers, num_classes):
    """Counts images by class and prediction.

    Args:
        answers: `{"class prediction": number of images}`, both as indices.
        num_classes: int, number of classes.

    Returns:
        Integer array of shape (num_classes, num_classes): a row per class, a column per prediction.
    """
    matrix = np.zeros((num_classes, num_classes), int)
    for pair, images in answers.items():
        label, answer = map(int, pair.split())
        matrix[label, answer] = images
    return matrix


def class_table(matrix, labels):
    """A confusion matrix as CSV with a row per class, the lowest recall first.

    A cell is empty if its fraction would divide by zero.
    """
    correct, images, answered = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    wrong = matrix - np.diag(correct)
    rows = []
    for index, label in enumerate(labels):
        rows.append(
            (
                label,
                int(images[index]),
                _percent(correct[index], images[index]),
                _percent(correct[index], answered[index]),
                _percent(2 * correct[index], images[index] + answered[index]),
                labels[wrong[index].argmax()] if wrong[index].any() else "",
            )
        )
    rows.sort(key=lambda row: float(row[2] or "inf"))
    return _csv([COLUMNS, *rows])


def matrix_table(matrix, labels):
    """A confusion matrix as CSV: a row per class, a column per prediction."""
    return _csv(
        [("class", *labels), *((label, *row) for label, row in zip(labels, matrix.tolist()))]
    )


def _percent(part, whole):
    return f"{100 * part / whole:.3f}" if whole else ""


def _csv(rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
