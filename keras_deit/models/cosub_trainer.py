"""Training a classifier with two of its own submodels, which teach each other."""

from typing import Any

import keras
from keras import ops

from keras_deit.layers.naming import unique_name
from keras_deit.models.deit_image_classifier import DeiTImageClassifier
from keras_deit.models.input_checks import CheckedInputs
from keras_deit.models.label_checks import check_labels
from keras_deit.models.logged_losses import LoggedLosses
from keras_deit.models.logits_loss import LogitsLoss, check_returns_logits
from keras_deit.models.raw_images import RawImageInputs


@keras.saving.register_keras_serializable(package="keras_deit")
class CosubTrainer(LogitsLoss, LoggedLosses, RawImageInputs, CheckedInputs, keras.Model):
    """Trains a classifier by cosub: two of its submodels learn from the labels and each other.

    Each step runs the classifier twice on the same images. DropPath skips other blocks each time,
    so the two passes are two submodels, with logits a and b. With the loss L of `compile`:

    `label_loss = (L(labels, a) + L(labels, b)) / 2`

    `cosub_loss = (M(p(b), a) + M(p(a), b)) / 2`

    `loss = (label_loss + cosub_loss) / 2`

    If L is a `keras.losses.BinaryCrossentropy`, M is one too and p is the sigmoid, as in the
    official code. Otherwise M is the categorical cross-entropy and p the softmax. No gradient goes
    through p. The training log has all three losses. `evaluate` and `predict` use the whole
    classifier.

    The trained model is `classifier`; the trainer is not needed after training.

    Args:
        classifier: `DeiTImageClassifier` with `drop_path_rate` above 0 and without `activation`.
        **kwargs: `name`, `trainable`.

    Input shape:
        Same as for `classifier.fit`.

    Output shape:
        (batch, num_classes), logits.

    Raises:
        ValueError: if `classifier` is no such model, or the labels do not fit the loss.

    Example:

    >>> classifier = DeiTImageClassifier.from_preset(
    ...     "deit_nano_distilled_patch4_32_digits", load_weights=False, drop_path_rate=0.1
    ... )
    >>> trainer = CosubTrainer(classifier)
    >>> trainer.compile("adamw", metrics=["accuracy"])
    >>> images, labels = np.zeros((8, 8, 8, 1), "uint8"), np.arange(8)
    >>> history = trainer.fit(images, labels, verbose=0)
    >>> trainer.predict(images, verbose=0).shape
    (8, 10)

    Reference: [Touvron et al., 2023](https://arxiv.org/abs/2212.04884); `engine.py` of
        facebookresearch/deit at 7e160fe, `--cosub`.
    """

    def __init__(self, classifier: Any, **kwargs: Any) -> None:
        _check_classifier(classifier)
        super().__init__(**{**kwargs, "name": kwargs.get("name") or unique_name("cosub_trainer")})
        self.dtype_policy = classifier.dtype_policy  # enables loss scaling with "mixed_float16"
        self.classifier = classifier
        self._create_loss_trackers(("label_loss", "cosub_loss"))
        self.built = True

    @property
    def preprocessor(self):
        """The classifier's preprocessor, or `None`."""
        return self.classifier.preprocessor

    def _get_classifier(self):
        return self.classifier

    def call(self, inputs, training=None):
        self._check_inputs(inputs)
        return self.classifier(inputs, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        check_labels(self.loss, self.classifier.num_classes, y)
        label_loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return label_loss
        other = self.classifier(x, training=True)
        label_loss = (label_loss + super().compute_loss(x, y, other, sample_weight, training)) / 2
        cosub_loss = (
            self._mutual_loss(other, y_pred, sample_weight)
            + self._mutual_loss(y_pred, other, sample_weight)
        ) / 2
        self._log_losses({"label_loss": label_loss, "cosub_loss": cosub_loss}, ops.shape(y_pred)[0])
        return (label_loss + cosub_loss) / 2

    def _mutual_loss(self, teacher, student, sample_weight):
        """What one submodel learns from the other's logits."""
        teacher = ops.stop_gradient(ops.cast(teacher, "float32"))
        if isinstance(self.loss, keras.losses.BinaryCrossentropy):
            loss, probabilities = keras.losses.BinaryCrossentropy, ops.sigmoid(teacher)
        else:
            loss, probabilities = keras.losses.CategoricalCrossentropy, ops.softmax(teacher)
        return loss(from_logits=True)(probabilities, student, sample_weight)

    def get_config(self):
        return {
            "classifier": keras.saving.serialize_keras_object(self.classifier),
            "name": self.name,
            "trainable": self.trainable,
        }

    @classmethod
    def from_config(cls, config):
        classifier = keras.saving.deserialize_keras_object(config["classifier"], safe_mode=True)
        return cls(**{**config, "classifier": classifier})


def _check_classifier(classifier):
    if not isinstance(classifier, DeiTImageClassifier):
        raise ValueError(
            f"`classifier` must be a `DeiTImageClassifier`. Received: classifier={classifier!r}"
        )
    check_returns_logits("classifier", classifier)
    backbone = classifier.backbone
    if all(block.drop_path_rate == 0 for block in backbone.blocks):
        raise ValueError(
            "`classifier` must have a `drop_path_rate` above 0: its two submodels skip different "
            "blocks. Use `DeiTImageClassifier.from_preset(handle, drop_path_rate=0.1)`; with one "
            'block, also `drop_path_schedule="constant"`. '
            f"Received: drop_path_rate={backbone.drop_path_rate}"
        )
