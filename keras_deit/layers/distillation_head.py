"""The two heads of a distilled model."""

from typing import Any

import keras

from keras_deit.arguments import check_positive_int, check_token_sequence
from keras_deit.layers.composite import CompositeLayer
from keras_deit.layers.initialization import deit_initializer
from keras_deit.layers.inputs import as_floats


@keras.saving.register_keras_serializable(package="keras_deit")
class DistillationHead(CompositeLayer):
    """Classifies the class token and the distillation token, each with its own dense layer.

    `class_logits = class_head(tokens[:, 0])` and
    `distillation_logits = distillation_head(tokens[:, 1])`. In training, the class head learns from
    the labels and the distillation head from the teacher. `DeiTImageClassifier` averages both.

    Args:
        num_classes: int. Number of classes.

    Input shape:
        (batch, tokens, hidden_dim). The first token is the class token, the second the distillation
        token.

    Output shape:
        `(class_logits, distillation_logits)`, each (batch, num_classes).

    Raises:
        ValueError: if `num_classes` is not a positive integer, or the input has fewer than two
            tokens.

    Example:

    >>> tokens = keras.random.uniform((2, 6, 64))
    >>> class_logits, distillation_logits = DistillationHead(num_classes=10)(tokens)
    >>> class_logits.shape
    (2, 10)

    Reference: [Touvron et al., 2021](https://arxiv.org/abs/2012.12877), section 4.
    """

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        num_classes = check_positive_int("num_classes", num_classes)
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.class_head = self._dense("class_head")
        self.distillation_head = self._dense("distillation_head")

    def build(self, input_shape):
        self._check_shape(input_shape)
        self.class_head.build((None, input_shape[-1]))
        self.distillation_head.build((None, input_shape[-1]))
        self.input_spec = keras.InputSpec(ndim=3, axes={-1: input_shape[-1]})
        self.built = True

    def _check_shape(self, input_shape):
        check_token_sequence("DistillationHead", input_shape)
        if input_shape[1] is not None and input_shape[1] < 2:
            raise ValueError(
                "`DistillationHead` reads a class token and a distillation token, so it needs at "
                "least 2 tokens: "
                "set `num_prefix_tokens=2` on TokenPositionEmbedding or "
                "`use_distillation_token=True` on DeiTBackbone. "
                f"Received: input shape {tuple(input_shape)}"
            )

    def call(self, inputs):
        inputs = as_floats(self, inputs)
        self._check_shape(inputs.shape)
        return self.class_head(inputs[:, 0]), self.distillation_head(inputs[:, 1])

    def compute_mask(self, inputs, previous_mask=None):
        return None  # the outputs have no tokens

    def compute_output_shape(self, input_shape):
        self._check_shape(input_shape)
        shape = (input_shape[0], self.num_classes)
        return shape, shape

    def _dense(self, name):
        return keras.layers.Dense(
            self.num_classes, kernel_initializer=deit_initializer(), **self.sublayer(name)
        )

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes}
