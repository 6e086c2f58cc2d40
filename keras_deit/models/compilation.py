"""What `compile` means for a classifier where the user does not say."""

import keras

_LEARNING_RATE = 1e-4  # a fresh head learns at it, and a trained backbone keeps what it knows


class AutomaticCompilation:
    """Mixed into a model with `activation` and `num_classes`: `compile()` is enough for `fit`."""

    def compile(self, optimizer="auto", loss="auto", loss_weights=None, metrics="auto", **kwargs):
        """As of `keras.Model`, with what is usual for classification where `"auto"` stands:
        `compile()` is enough for fine-tuning.

        Args:
            optimizer: `"auto"` is `AdamW(1e-4)`: a rate for fine-tuning, low enough for a trained
                backbone. For more accuracy, `keras_deit.training.RECIPES["new_classes"]` has a
                schedule, and a higher rate for the head.
            loss: `"auto"` is `SparseCategoricalCrossentropy`, of labels (batch,) that are indices
                of classes, for logits or `"softmax"`; with `activation="sigmoid"` it is
                `BinaryCrossentropy`, of labels (batch, num_classes) from 0 to 1. `None` is no loss.
            metrics: `"auto"` is the accuracy if the loss is `"auto"`, and nothing for a loss of
                your own.
            loss_weights, **kwargs: as of `keras.Model.compile`.

        Raises:
            ValueError: no loss is usual for the `activation`.
        """
        automatic_metrics = None
        if _is_auto(loss):
            loss, automatic_metrics = _loss_and_metrics(self.activation, self.num_classes)
        if _is_auto(optimizer):
            optimizer = keras.optimizers.AdamW(_LEARNING_RATE)
        if _is_auto(metrics):
            metrics = automatic_metrics
        super().compile(optimizer, loss, loss_weights, metrics, **kwargs)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)


def _is_auto(argument):
    return isinstance(argument, str) and argument == "auto"


def _loss_and_metrics(activation, num_classes):
    """The usual loss of what `activation` makes of the logits, and the accuracy."""
    if activation is keras.activations.sigmoid:
        return keras.losses.BinaryCrossentropy(), [keras.metrics.BinaryAccuracy(name="accuracy")]
    if num_classes == 1 or activation not in (keras.activations.linear, keras.activations.softmax):
        raise ValueError(
            '`compile` knows the loss of two classes or more, for logits (`activation=None`), "softmax" and "sigmoid", and of one class with '
            f'"sigmoid". Give `loss=`. Received: activation={keras.activations.serialize(activation)!r}, num_classes={num_classes}'
        )
    from_logits = activation is keras.activations.linear
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    return loss, [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
