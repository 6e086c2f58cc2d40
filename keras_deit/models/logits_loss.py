"""Checks that a classifier returns logits, and that the loss takes them."""

import inspect

import keras


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
