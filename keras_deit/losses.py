"""Losses that Keras does not have: distillation, and labels mixed by MixUp and CutMix."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deit.arguments import (
    check_choice,
    check_fraction,
    check_positive_int,
    check_positive_number,
)

__all__ = [
    "AttentionDistillationLoss",
    "FeatureDistillationLoss",
    "HardDistillationLoss",
    "MixedLabelBinaryCrossentropy",
    "RelationDistillationLoss",
    "SoftDistillationLoss",
]

REDUCTIONS = ("sum_over_batch_size", "sum", "mean", "mean_with_sample_weight", "none")
KL_REDUCTIONS = ("batchmean", "mean")
_EPSILON = 1e-5  # that of PyTorch's LayerNorm, which the reference uses


@keras.saving.register_keras_serializable(package="keras_deit")
class HardDistillationLoss(keras.losses.Loss):
    """Cross-entropy between the student's logits and the teacher's most likely class.

    `loss = -log(softmax(student)[argmax(teacher)])`, averaged over samples.

    Call arguments:
        y_true: the teacher's logits, (batch, num_classes).
        y_pred: the student's logits, (batch, num_classes).

    Reference: `losses.py` of facebookresearch/deit at 7e160fe, `distillation_type="hard"`.
    """

    def __init__(self, name: str = "hard_distillation_loss", **kwargs: Any) -> None:
        _check_reduction(kwargs)
        super().__init__(name=name, **kwargs)

    def call(self, y_true, y_pred):
        taught = ops.argmax(y_true, axis=-1)
        return keras.losses.sparse_categorical_crossentropy(
            taught, ops.cast(y_pred, "float32"), from_logits=True
        )


@keras.saving.register_keras_serializable(package="keras_deit")
class SoftDistillationLoss(keras.losses.Loss):
    """Kullback-Leibler divergence between the softened distributions of teacher and student.

    `loss = T**2 * sum(p * (log(p) - log(q)))` over classes, averaged over samples, with
    `p = softmax(teacher / T)`, `q = softmax(student / T)` and the temperature T. The factor `T**2`
    keeps the size of the gradients independent of T.

    Args:
        temperature: float above 0. Defaults to 1.0.
        kl_reduction: `"batchmean"` sums over classes and averages over samples; `"mean"` averages
            over both, as the official code does, which is smaller by the number of classes.
            Defaults to `"batchmean"`.

    Call arguments:
        y_true: the teacher's logits, (batch, num_classes).
        y_pred: the student's logits, (batch, num_classes).

    Reference: [Hinton et al., 2015](https://arxiv.org/abs/1503.02531); `losses.py` of
        facebookresearch/deit at 7e160fe, `distillation_type="soft"`.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        kl_reduction: str = "batchmean",
        name: str = "soft_distillation_loss",
        **kwargs: Any,
    ) -> None:
        temperature = check_positive_number("temperature", temperature)
        check_choice("kl_reduction", kl_reduction, KL_REDUCTIONS)
        _check_reduction(kwargs)
        super().__init__(name=name, **kwargs)
        self.temperature = temperature
        self.kl_reduction = kl_reduction

    def call(self, y_true, y_pred):
        log_p = ops.log_softmax(ops.cast(y_true, "float32") / self.temperature, axis=-1)
        log_q = ops.log_softmax(ops.cast(y_pred, "float32") / self.temperature, axis=-1)
        terms = ops.exp(log_p) * (log_p - log_q)
        over_classes = ops.sum if self.kl_reduction == "batchmean" else ops.mean
        return self.temperature**2 * over_classes(terms, axis=-1)

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "kl_reduction": self.kl_reduction,
        }


@keras.saving.register_keras_serializable(package="keras_deit")
class AttentionDistillationLoss(keras.losses.Loss):
    """Kullback-Leibler divergence between the attention scores of teacher and student.

    `loss = sum(p * (log(p) - log(q)))` over the tokens attended to, averaged over heads, attending
    tokens and samples. `p` is a row of the teacher's attention, `q` the same row of the student's.

    Call arguments:
        y_true: the teacher's scores after the softmax, (batch, num_heads, tokens, tokens).
        y_pred: the student's, of the same shape.

    Raises:
        ValueError: in a call, if the shapes differ.

    Example:

    >>> scores = np.full((1, 2, 3, 3), 1 / 3, "float32")
    >>> float(AttentionDistillationLoss()(scores, scores))
    0.0

    Reference: [Wang et al., 2020](https://arxiv.org/abs/2002.10957) (MiniLM), section 3.1.
    """

    def __init__(self, name: str = "attention_distillation_loss", **kwargs: Any) -> None:
        _check_reduction(kwargs)
        super().__init__(name=name, **kwargs)

    def call(self, y_true, y_pred):
        if _sizes_differ(y_true.shape, y_pred.shape, (1, 2, 3)):
            raise ValueError(
                "Teacher and student must have the same number of heads and tokens. Otherwise use "
                "`RelationDistillationLoss`, which takes any number of heads. Received: scores of "
                f"shape {tuple(y_true.shape)} and {tuple(y_pred.shape)}"
            )
        return ops.mean(_divergence(_log(y_true), _log(y_pred)), axis=(1, 2))


@keras.saving.register_keras_serializable(package="keras_deit")
class RelationDistillationLoss(keras.losses.Loss):
    """Kullback-Leibler divergence between how the tokens of teacher and student relate.

    `relations = softmax(x @ x.T / sqrt(d))` for each relation head: a part x (tokens, d) of the
    vectors, with `d = width / num_relation_heads`. `loss = sum(p * (log(p) - log(q)))` over a row
    of the relations, p of the teacher and q of the student, averaged over relation heads, rows and
    samples. Teacher and student may differ in width and in their numbers of attention heads.

    Args:
        num_relation_heads: int. Must divide the widths of teacher and student. Defaults to 1.

    Call arguments:
        y_true: the teacher's vectors, (batch, tokens, teacher_dim): its queries, keys or values,
            or any other tokens.
        y_pred: the student's, (batch, tokens, student_dim).

    Raises:
        ValueError: if `num_relation_heads` is out of range; in a call, if it does not divide a
            width, or the numbers of tokens differ.

    Example:

    >>> teacher, student = np.ones((1, 3, 8), "float32"), np.ones((1, 3, 4), "float32")
    >>> float(RelationDistillationLoss(num_relation_heads=2)(teacher, student))
    0.0

    Reference: [Wang et al., 2021](https://arxiv.org/abs/2012.15828) (MiniLMv2), section 3.1.
    """

    def __init__(
        self,
        num_relation_heads: int = 1,
        name: str = "relation_distillation_loss",
        **kwargs: Any,
    ) -> None:
        num_relation_heads = check_positive_int("num_relation_heads", num_relation_heads)
        _check_reduction(kwargs)
        super().__init__(name=name, **kwargs)
        self.num_relation_heads = num_relation_heads

    def call(self, y_true, y_pred):
        _check_same_tokens(y_true.shape, y_pred.shape)
        divergence = _divergence(self._log_relations(y_true), self._log_relations(y_pred))
        return ops.mean(divergence, axis=(1, 2))

    def _log_relations(self, vectors):
        """Logarithms of the relations, (batch, num_relation_heads, tokens, tokens)."""
        width = vectors.shape[-1]
        if width % self.num_relation_heads:
            raise ValueError(
                "`num_relation_heads` must divide the widths of teacher and student. Received: "
                f"num_relation_heads={self.num_relation_heads}, vectors of shape "
                f"{tuple(vectors.shape)}"
            )
        size = width // self.num_relation_heads
        heads = ops.reshape(
            ops.cast(vectors, "float32"),
            (-1, ops.shape(vectors)[1], self.num_relation_heads, size),
        )
        heads = ops.transpose(heads, (0, 2, 1, 3))  # (B, heads, T, size)
        products = ops.matmul(heads, ops.transpose(heads, (0, 1, 3, 2)))
        return ops.log_softmax(products / math.sqrt(size), axis=-1)

    def get_config(self):
        return {**super().get_config(), "num_relation_heads": self.num_relation_heads}


@keras.saving.register_keras_serializable(package="keras_deit")
class FeatureDistillationLoss(keras.losses.Loss):
    """Smooth L1 distance of the student's tokens to the teacher's normalised tokens.

    With `e = student - normalise(teacher)`, `loss = e**2 / (2 * beta)` where `|e| <= beta` and
    `|e| - beta / 2` elsewhere, averaged over values, tokens and samples. `normalise` gives each
    token of the teacher mean 0 and variance 1, so that large teachers and small ones have the same
    scale.

    Args:
        beta: float above 0. Distance from which on the loss is linear. Defaults to 2.0.

    Call arguments:
        y_true: the teacher's tokens, (batch, tokens, teacher_dim).
        y_pred: the student's tokens, projected to the same width.

    Raises:
        ValueError: if `beta` is out of range; in a call, if tokens or widths differ.

    Example:

    >>> teacher = np.asarray([[[1.0, -1.0]]], "float32")  # has mean 0 and variance 1
    >>> round(float(FeatureDistillationLoss()(teacher, np.zeros((1, 1, 2), "float32"))), 4)
    0.25

    Reference: [Wei et al., 2022](https://arxiv.org/abs/2205.14141), section 3;
        `models/feature_distillation.py` of SwinTransformer/Feature-Distillation at 2115145.
    """

    def __init__(
        self, beta: float = 2.0, name: str = "feature_distillation_loss", **kwargs: Any
    ) -> None:
        beta = check_positive_number("beta", beta)
        _check_reduction(kwargs)
        super().__init__(name=name, **kwargs)
        self.beta = beta

    def call(self, y_true, y_pred):
        _check_same_tokens(y_true.shape, y_pred.shape)
        if _sizes_differ(y_true.shape, y_pred.shape, (2,)):
            raise ValueError(
                "The student's tokens must be as wide as the teacher's. Project them with "
                f"`keras.layers.Dense({y_true.shape[-1]})`. Received: tokens of shape "
                f"{tuple(y_true.shape)} and {tuple(y_pred.shape)}"
            )
        teacher = ops.cast(y_true, "float32")
        mean, variance = ops.moments(teacher, axes=-1, keepdims=True)
        normalized = (teacher - mean) / ops.sqrt(variance + _EPSILON)
        distance = keras.losses.huber(normalized, ops.cast(y_pred, "float32"), delta=self.beta)
        return ops.mean(distance, axis=-1) / self.beta

    def get_config(self):
        return {**super().get_config(), "beta": self.beta}


@keras.saving.register_keras_serializable(package="keras_deit")
class MixedLabelBinaryCrossentropy(keras.losses.BinaryCrossentropy):
    """Binary cross-entropy in which every class of a mixed image counts fully.

    `loss = binary_crossentropy(labels > 0, logits)`, averaged over classes and samples. MixUp and
    CutMix produce labels such as 0.7 and 0.3; here, both become 1.

    Call arguments:
        y_true: labels, (batch, num_classes), one-hot or mixed.
        y_pred: logits, (batch, num_classes).

    Reference: `main.py` of facebookresearch/deit at 7e160fe, `--bce-loss`; [Touvron et al.,
        2022](https://arxiv.org/abs/2204.07118), section 3.
    """

    def __init__(self, name: str = "mixed_label_binary_crossentropy", **kwargs: Any) -> None:
        _check_reduction(kwargs)
        if "label_smoothing" in kwargs:
            kwargs["label_smoothing"] = check_fraction("label_smoothing", kwargs["label_smoothing"])
        from_logits = kwargs.pop("from_logits", True)
        if from_logits is not True:
            raise ValueError(
                "`from_logits` must be `True`: this loss takes logits. Received: "
                f"from_logits={from_logits!r}"
            )
        check_choice("axis", kwargs.get("axis", -1), (-2, -1, 0, 1))
        super().__init__(**{**kwargs, "from_logits": True, "name": name})

    def call(self, y_true, y_pred):
        return super().call(ops.cast(y_true > 0, y_pred.dtype), y_pred)


def _check_reduction(arguments):
    """Keras' own check fails on what cannot be hashed."""
    reduction = arguments.get("reduction")
    if reduction is not None:
        check_choice("reduction", reduction, REDUCTIONS)


def _log(scores):
    return ops.log(ops.maximum(ops.cast(scores, "float32"), np.finfo("float32").tiny))


def _divergence(log_p, log_q):
    """Kullback-Leibler divergence over the last axis."""
    return ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)


def _sizes_differ(first, second, axes):
    """Whether two known sizes of an axis differ."""
    pairs = [(first[axis], second[axis]) for axis in axes]
    return any(a is not None and b is not None and a != b for a, b in pairs)


def _check_same_tokens(teacher_shape, student_shape):
    if _sizes_differ(teacher_shape, student_shape, (1,)):
        raise ValueError(
            "Teacher and student must have the same tokens. Received: shapes "
            f"{tuple(teacher_shape)} and {tuple(student_shape)}"
        )
