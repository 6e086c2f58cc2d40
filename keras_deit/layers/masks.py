"""Padding masks: `True` for the tokens that others attend to."""

import keras
from keras import ops

from keras_deit.arguments import check_bool
from keras_deit.layers.composite import CompositeLayer


class MaskedLayer(CompositeLayer):
    """Base class of layers whose `call` takes `num_queries` and `mask`, a padding mask, which goes
    with the outputs.
    """

    _num_masked_outputs = None

    def _check_call(self, input_shape, return_attention_scores, num_queries, mask):
        """To be called first by `call` and `compute_output_spec`."""
        check_bool("return_attention_scores", return_attention_scores)
        if mask is not None:
            check_mask(type(self).__name__, mask, input_shape)
            # Keras then calls `compute_mask` without the arguments of the call.
            self._num_masked_outputs = num_queries

    def compute_mask(self, inputs, previous_mask=None):
        if previous_mask is None or self._num_masked_outputs is None:
            return previous_mask
        return previous_mask[:, : self._num_masked_outputs]


def check_mask(layer, mask, input_shape):
    """Refuses anything but a bool (or 0 or 1) for each token."""
    shape = tuple(getattr(mask, "shape", ()))
    fits = len(shape) == 2 and all(
        None in (own, expected) or own == expected for own, expected in zip(shape, input_shape)
    )
    dtype = keras.backend.standardize_dtype(mask.dtype) if fits else ""
    if not fits or "float" in dtype:
        raise ValueError(
            f"`mask` of `{layer}` must be a padding mask of shape (batch, tokens): a bool for each "
            "token, `True` to attend to it. "
            f"Received: mask={f'{dtype} of shape {shape}' if fits else _described(mask)}, "
            f"input shape {tuple(input_shape)}"
        )


def _described(mask):
    return f"of shape {tuple(mask.shape)}" if hasattr(mask, "shape") else repr(mask)


def padding_bias(mask, dtype):
    """(B, T) to a bias of the attention logits, (B, 1, 1, T)."""
    # Finite, so that an image without any token to attend to gives numbers, not NaN.
    hidden = -3e4 if keras.backend.standardize_dtype(dtype) == "float16" else -1e9
    bias = ops.where(ops.cast(mask, "bool"), 0.0, hidden)
    return ops.cast(bias, dtype)[:, None, None, :]


def refuse_mask(layer, mask):
    if mask is not None:
        raise ValueError(
            f"`{type(layer).__qualname__}` reduces the number of tokens and takes no "
            "mask. Use `TransformerBlock`, which does, or inputs without padding."
        )
