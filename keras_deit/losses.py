"""Losses that Keras does not have: distillation, and labels mixed by MixUp and CutMix."""

from typing import Any

import keras
from keras import ops

from keras_deit.arguments import check_choice, check_fraction, check_positive_number

__all__ = ["HardDistillationLoss", "MixedLabelBinaryCrossentropy", "SoftDistillationLoss"]

REDUCTIONS = ("sum_over_batch_size", "sum", "mean", "mean_with_sample_weight", "none")
KL_REDUCTIONS = ("batchmean", "mean")


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
