"""Losses of the recipes that Keras does not have."""

import keras
from keras import ops


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
