"""Training on a random part of the patches."""

import random
from typing import Any

import keras
from keras import ops

from keras_deit.arguments import (
    check_non_negative_int,
    check_rate,
    check_seed,
    check_token_sequence,
)
from keras_deit.layers.inputs import as_floats


@keras.saving.register_keras_serializable(package="keras_deit")
class PatchDropout(keras.layers.Layer):
    """Keeps a random part of the patch tokens during training, and drops the others.

    `outputs[b] = concat(prefix[b], patches[b][kept[b]])`. For each image, `kept[b]` are
    `max(1, int(patches * (1 - rate)))` different patches, in their order. At inference,
    `outputs = inputs`.

    Unlike `keras.layers.Dropout`, it removes tokens instead of setting values to zero, so the
    layers behind it compute less. Place it behind the layer that adds positions. Kept tokens are
    not scaled.

    Args:
        rate: float in [0, 1). Share of the patch tokens to drop.
        num_prefix_tokens: int, 0 or more. Number of tokens at the start that are always kept.
            Defaults to 1.
        seed: int. Makes the sequence of kept patches reproducible. Defaults to `None`.

    Call arguments:
        inputs: tokens.
        training: bool. Whether patches are dropped.
        mask: refused, because Keras could not pass it on to the kept tokens.

    Input shape:
        (batch, tokens, hidden_dim).

    Output shape:
        (batch, kept tokens, hidden_dim) in training, and the input shape at inference. The
        symbolic output has `None` tokens, unless `rate` is 0.

    Raises:
        ValueError: if an argument is out of range, or there is a mask.

    Example:

    >>> tokens = keras.random.uniform((2, 7, 64))
    >>> PatchDropout(rate=0.5)(tokens, training=True).shape
    (2, 4, 64)

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2208.07220).
    """

    def __init__(
        self, rate: float, num_prefix_tokens: int = 1, seed: int | None = None, **kwargs: Any
    ) -> None:
        rate, seed = check_rate("rate", rate), check_seed("seed", seed)
        num_prefix_tokens = check_non_negative_int("num_prefix_tokens", num_prefix_tokens)
        super().__init__(**kwargs)
        self.rate = rate
        self.num_prefix_tokens = num_prefix_tokens
        self.seed = seed
        # As in `DropPath`
        self._first_seed = random.randint(1, 10**9) if seed is None and rate > 0 else seed

    def build(self, input_shape):
        check_token_sequence("PatchDropout", input_shape)
        if self.rate > 0:
            self.seed_generator = keras.random.SeedGenerator(self._first_seed, "seed_generator")
        self.input_spec = keras.InputSpec(ndim=3)
        self.built = True

    def call(self, inputs, training=False, mask=None):
        inputs = as_floats(self, inputs)
        check_token_sequence("PatchDropout", inputs.shape)
        _refuse_mask(mask)
        if not training or self.rate == 0:
            return inputs
        prefix, patches = inputs[:, : self.num_prefix_tokens], inputs[:, self.num_prefix_tokens :]
        batch, num_patches, _ = ops.shape(patches)
        # float32, because half precision has many equal numbers
        order = ops.argsort(
            keras.random.uniform((batch, num_patches), seed=self.seed_generator, dtype="float32"),
            axis=1,
        )
        kept = ops.sort(order[:, : self._num_kept(num_patches)], axis=1)
        patches = ops.take_along_axis(patches, kept[..., None], axis=1)
        return ops.concatenate([prefix, patches], axis=1)

    def _num_kept(self, num_patches):
        if isinstance(num_patches, int):
            return max(1, int(num_patches * (1 - self.rate)))
        # A number that TensorFlow's graph does not know yet; float64 rounds as Python does
        kept = ops.cast(num_patches, "float64") * (1 - self.rate)
        return ops.maximum(1, ops.cast(kept, "int32"))

    def compute_output_shape(self, input_shape):
        check_token_sequence("PatchDropout", input_shape)
        batch, tokens, hidden_dim = input_shape
        return (batch, None if self.rate > 0 else tokens, hidden_dim)

    def compute_output_spec(self, inputs, training=False, mask=None):
        _refuse_mask(mask)
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "rate": self.rate,
            "num_prefix_tokens": self.num_prefix_tokens,
            "seed": self.seed,
        }


def _refuse_mask(mask):
    if mask is not None:
        raise ValueError(
            "`PatchDropout` takes no mask, because Keras could not pass it on to the kept tokens. "
            "Use inputs without padding."
        )
