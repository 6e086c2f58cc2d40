"""Checks labels against the loss and the number of classes, alike on each backend."""

import keras
import numpy as np

_OF_INDICES = keras.losses.SparseCategoricalCrossentropy
_OF_ONE_HOT = (keras.losses.CategoricalCrossentropy, keras.losses.BinaryCrossentropy)
_FUNCTIONS_OF_ONE_HOT = (keras.losses.categorical_crossentropy, keras.losses.binary_crossentropy)


def check_labels(loss, num_classes, labels):
    """Checks the shape of labels, and their values if they are a NumPy array.

    Args:
        loss: loss of `compile`. Only labels for Keras' cross-entropies are checked.
        num_classes: int.
        labels: array, spec or symbolic tensor with a `shape`, or `None`.

    Raises:
        ValueError: if labels are missing or do not fit.
    """
    if labels is None:
        raise ValueError("There are no labels. Use `y=`, or a dataset of (images, labels).")
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    of_indices = (
        isinstance(loss, _OF_INDICES) or loss is keras.losses.sparse_categorical_crossentropy
    )
    of_one_hot = isinstance(loss, _OF_ONE_HOT) or loss in _FUNCTIONS_OF_ONE_HOT
    if num_classes == 1 or not (of_indices or of_one_hot):
        return
    if getattr(labels.shape, "rank", 1) is not None:  # a tf.data.Dataset may not know its rank
        _check_shape(loss, of_indices, num_classes, tuple(labels.shape))
    if isinstance(labels, np.ndarray):
        _check_values(loss, of_indices, num_classes, labels)


def _check_shape(loss, of_indices, num_classes, shape):
    are_indices = len(shape) == 1 or (len(shape) == 2 and shape[1] in (1, None))
    are_one_hot = len(shape) == 2 and shape[1] in (num_classes, None)
    fit, would_fit = (are_indices, are_one_hot) if of_indices else (are_one_hot, are_indices)
    if fit:
        return
    wanted = (
        "class indices, (batch,)"
        if of_indices
        else f"one value for each class, (batch, {num_classes})"
    )
    other = "CategoricalCrossentropy" if of_indices else "SparseCategoricalCrossentropy"
    from_logits = isinstance(loss, keras.losses.Loss) and loss.get_config().get(
        "from_logits", False
    )
    if would_fit:
        loss = f"keras.losses.{other}(from_logits={from_logits})"
        advice = f"For these labels, compile with `loss={loss}`."
    else:
        advice = "Change their shape."
    raise ValueError(
        f"The loss takes labels as {wanted}. {advice} Received: labels of shape {shape}"
    )


def _check_values(loss, of_indices, num_classes, labels):
    if labels.dtype.kind in "OSU":
        raise ValueError(
            f"Labels must be numbers. Use class indices from 0 to {num_classes - 1}. "
            f"Received: labels of dtype {labels.dtype}"
        )
    ignored = loss.get_config().get("ignore_class") if isinstance(loss, keras.losses.Loss) else None
    labels = labels if ignored is None else labels[labels != ignored]
    if not labels.size:
        return
    highest, wanted = (num_classes - 1, "whole numbers") if of_indices else (1, "values")
    # MixUp's labels may exceed 1 by rounding. Comparisons with NaN are False.
    in_range = labels.min() >= 0 and labels.max() <= highest + 1e-3
    if not in_range or (of_indices and (labels != np.floor(labels)).any()):
        of_classes = (
            ", the class indices of the model. Number the classes from 0, or use a larger "
            "`num_classes`"
            if of_indices
            else ""
        )
        raise ValueError(
            f"Labels must be {wanted} from 0 to {highest}{of_classes}. Received: labels from "
            f"{labels.min()} to {labels.max()}"
        )
