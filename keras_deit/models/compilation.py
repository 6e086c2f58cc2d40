"""Defaults of `compile` for classifiers."""

import warnings

import keras

from keras_deit.arguments import check_not_float16

_LEARNING_RATE = 1e-4  # high enough for a new head, low enough for a trained backbone


class AutomaticCompilation:
    """Mixin for models with `activation` and `num_classes`: `compile()` needs no arguments."""

    def compile(self, optimizer="auto", loss="auto", loss_weights=None, metrics="auto", **kwargs):
        """Like `keras.Model.compile`, with defaults for fine-tuning a classifier.

        Args:
            optimizer: defaults to `"auto"`, which is `AdamW(1e-4)`. For higher accuracy, use
                `keras_deit.training.RECIPES["new_classes"]`, which adds a schedule and a higher
                learning rate for the head.
            loss: defaults to `"auto"`. For logits and `"softmax"`, that is
                `SparseCategoricalCrossentropy` with class indices (batch,) as labels. For
                `activation="sigmoid"`, it is `BinaryCrossentropy` with labels
                (batch, num_classes) from 0 to 1. `None` means no loss.
            metrics: defaults to `"auto"`: the accuracy if `loss="auto"`, otherwise none.
            loss_weights, **kwargs: see `keras.Model.compile`.

        Raises:
            ValueError: if `loss="auto"` and there is no default loss for this `activation` and
                `num_classes`; or there is an optimizer, and weights to train are in float16 (use
                the policy `"mixed_float16"`).
        """
        if optimizer is not None:
            check_not_float16(self)
        automatic_metrics = None
        if _is_auto(loss):
            loss, automatic_metrics = _loss_and_metrics(self.activation, self.num_classes)
        if _is_auto(optimizer):
            optimizer = keras.optimizers.AdamW(_LEARNING_RATE)
        if _is_auto(metrics):
            metrics = automatic_metrics
        super().compile(optimizer, loss, loss_weights, metrics, **kwargs)

    def compile_from_config(self, config):
        try:
            check_not_float16(self)
        except ValueError as error:  # a file of version 0.1, which can still predict
            warnings.warn(f"{self.name!r} is not compiled. {error}", stacklevel=2)
            return
        self.compile(**keras.saving.deserialize_keras_object(config, safe_mode=True))
        self.optimizer.build(self.trainable_variables)


def _is_auto(argument):
    return isinstance(argument, str) and argument == "auto"


def _loss_and_metrics(activation, num_classes):
    """The default loss and metrics for an `activation`."""
    if activation is keras.activations.sigmoid:
        return keras.losses.BinaryCrossentropy(), [keras.metrics.BinaryAccuracy(name="accuracy")]
    if num_classes == 1 or activation not in (keras.activations.linear, keras.activations.softmax):
        raise ValueError(
            "There is no default loss for this `activation` and `num_classes`. Use `loss=`. "
            f"Received: activation={keras.activations.serialize(activation)!r}, "
            f"num_classes={num_classes}"
        )
    from_logits = activation is keras.activations.linear
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    return loss, [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
