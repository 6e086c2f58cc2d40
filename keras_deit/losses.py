"""Losses that Keras does not have: distillation, and labels mixed by MixUp and CutMix."""

import keras
from keras import ops

from keras_deit.arguments import check_choice, check_positive_number

__all__ = ["HardDistillationLoss", "MixedLabelBinaryCrossentropy", "SoftDistillationLoss"]

KL_REDUCTIONS = ("batchmean", "mean")


@keras.saving.register_keras_serializable(package="keras_deit")
class HardDistillationLoss(keras.losses.Loss):
    """Cross-entropy of the student's logits with the class that the teacher holds most likely.

    `-log(softmax(student)[argmax(teacher)])`, the mean over samples.

    Call arguments:
        y_true: the teacher's logits, (batch, num_classes).
        y_pred: the student's logits, (batch, num_classes).

    Reference: `losses.py` of facebookresearch/deit at 7e160fe, `distillation_type="hard"`.
    """

    def __init__(self, name="hard_distillation_loss", **kwargs):
        super().__init__(name=name, **kwargs)

    def call(self, y_true, y_pred):
        taught = ops.argmax(y_true, axis=-1)
        return keras.losses.sparse_categorical_crossentropy(
            taught, ops.cast(y_pred, "float32"), from_logits=True
        )


@keras.saving.register_keras_serializable(package="keras_deit")
class SoftDistillationLoss(keras.losses.Loss):
    """Kullback-Leibler divergence of the teacher's distribution from the student's, both softened
    by a temperature.

    `T**2 * sum(p * (log(p) - log(q)))` over classes, with `p = softmax(teacher / T)` and
    `q = softmax(student / T)`; then the mean over samples. `T**2` keeps the size of the gradients
    as T changes.

    Args:
        temperature: float above 0. Defaults to 1.0.
        kl_reduction: `"batchmean"`, the mean over samples of the sum over classes, or `"mean"`, the
            mean over samples and classes, as the official code has it: smaller by the number of
            classes. Defaults to `"batchmean"`.

    Call arguments:
        y_true: the teacher's logits, (batch, num_classes).
        y_pred: the student's logits, (batch, num_classes).

    Reference: [Hinton et al., 2015](https://arxiv.org/abs/1503.02531); `losses.py` of
        facebookresearch/deit at 7e160fe, `distillation_type="soft"`.
    """

    def __init__(
        self, temperature=1.0, kl_reduction="batchmean", name="soft_distillation_loss", **kwargs
    ):
        temperature = check_positive_number("temperature", temperature)
        check_choice("kl_reduction", kl_reduction, KL_REDUCTIONS)
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
    """Binary cross-entropy of logits that asks for every class of a mixed image, however little of
    it there is.

    `binary_crossentropy(labels > 0, logits)`, the mean over classes and samples. MixUp and CutMix
    give labels such as 0.7 and 0.3; both become 1.

    Call arguments:
        y_true: labels, (batch, num_classes), one-hot or mixed.
        y_pred: logits, (batch, num_classes).

    Reference: `main.py` of facebookresearch/deit at 7e160fe, `--bce-loss`; [Touvron et al.,
        2022](https://arxiv.org/abs/2204.07118), section 3.
    """

    def __init__(self, name="mixed_label_binary_crossentropy", **kwargs):
        super().__init__(**{**kwargs, "from_logits": True, "name": name})

    def call(self, y_true, y_pred):
        return super().call(ops.cast(y_true > 0, y_pred.dtype), y_pred)
