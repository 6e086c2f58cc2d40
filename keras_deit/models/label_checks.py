"""Labels that a loss and a number of classes cannot take are refused before anything is compiled,
in the same words on each backend.
"""

import keras
import numpy as np

_OF_INDICES = keras.losses.SparseCategoricalCrossentropy
_OF_ONE_HOT = (keras.losses.CategoricalCrossentropy, keras.losses.BinaryCrossentropy)
_FUNCTIONS_OF_ONE_HOT = (keras.losses.categorical_crossentropy, keras.losses.binary_crossentropy)


def check_labels(loss, num_classes, labels):
    """Raises a ValueError unless the labels are there, and fit by shape and, in a NumPy array, by
    value.

    Args:
        loss: what `compile` got. Losses other than Keras' cross-entropies take what they will.
        num_classes: int.
        labels: array, or a spec or symbolic tensor with a `shape`, or `None`.
    """
    if labels is None:
        raise ValueError(
            "There are no labels to learn from or to compare with: give `y`, or a dataset of "
            "(images, labels)."
        )
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    of_indices = (
        isinstance(loss, _OF_INDICES) or loss is keras.losses.sparse_categorical_crossentropy
    )
    of_one_hot = isinstance(loss, _OF_ONE_HOT) or loss in _FUNCTIONS_OF_ONE_HOT
    if num_classes == 1 or not (of_indices or of_one_hot):
        return
    if getattr(labels.shape, "rank", 1) is not None:  # a tf.data.Dataset may not know
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
        "indices of classes, (batch,)"
        if of_indices
        else f"a value for each class, (batch, {num_classes})"
    )
    other = "CategoricalCrossentropy" if of_indices else "SparseCategoricalCrossentropy"
    from_logits = isinstance(loss, keras.losses.Loss) and loss.get_config().get(
        "from_logits", False
    )
    if would_fit:
        advice = f"For these labels, compile with `loss=keras.losses.{other}(from_logits={from_logits})`."
    else:
        advice = "Give the labels that shape."
    raise ValueError(f"The loss takes {wanted}. {advice} Received: labels of shape {shape}")


def _check_values(loss, of_indices, num_classes, labels):
    if labels.dtype.kind in "OSU":
        raise ValueError(
            f"Labels must be numbers. Give the index of each class, from 0 to {num_classes - 1}. "
            f"Received: labels of dtype {labels.dtype}"
        )
    ignored = loss.get_config().get("ignore_class") if isinstance(loss, keras.losses.Loss) else None
    labels = labels if ignored is None else labels[labels != ignored]
    if not labels.size:
        return
    highest, wanted = (num_classes - 1, "whole numbers") if of_indices else (1, "values")
    # Those of MixUp are rounded; also False for NaN
    in_range = labels.min() >= 0 and labels.max() <= highest + 1e-3
    if not in_range or (of_indices and (labels != np.floor(labels)).any()):
        of_classes = (
            ", the classes of the model. Count the classes from 0, or give the model as many"
            if of_indices
            else ""
        )
        raise ValueError(
            f"Labels must be {wanted} from 0 to {highest}{of_classes}. Received: labels from "
            f"{labels.min()} to {labels.max()}"
        )
