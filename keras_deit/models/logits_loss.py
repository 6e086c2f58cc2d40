"""Classifiers that return logits, and the losses that take them."""

import inspect

import keras

from keras_deit.arguments import check_not_float16


class LogitsLoss:
    """Mixin for models that train a classifier with one loss between labels and logits."""

    def compile(self, optimizer="rmsprop", loss=None, **kwargs):
        """Like `keras.Model.compile`, with a single `loss` that takes logits.

        It defaults to `SparseCategoricalCrossentropy(from_logits=True)`. A classifier with weights
        in float16 is refused: use the policy `"mixed_float16"`.
        """
        loss = (
            keras.losses.SparseCategoricalCrossentropy(from_logits=True) if loss is None else loss
        )
        check_loss(loss)
        if optimizer is not None:
            check_not_float16(self)
        super().compile(optimizer, loss, **kwargs)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config, safe_mode=True))
        self.optimizer.build(self.trainable_variables)


def check_returns_logits(name, classifier):
    if classifier.activation is not keras.activations.linear:
        raise ValueError(
            f"`{name}` must return logits: use `activation=None`. Received: "
            f"activation={keras.activations.serialize(classifier.activation)!r}"
        )


def check_loss(loss):
    if isinstance(loss, (dict, list, tuple)):
        raise ValueError(
            f"`loss` must be a single loss for the class head. Received: loss={loss!r}"
        )
    function = keras.losses.get(loss)
    if isinstance(function, keras.losses.Loss):
        of_probabilities = function.get_config().get("from_logits") is False
    else:  # a name, or a function
        of_probabilities = "from_logits" in inspect.signature(function).parameters
    if of_probabilities:
        raise ValueError(
            "`loss` must take logits, such as "
            "`keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. "
            f"Received: loss={loss!r}"
        )
