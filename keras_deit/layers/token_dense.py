"""The dense layer of attention and MLP, in the form that each backend runs fastest."""

import keras
from keras import ops

if keras.backend.backend() == "torch":
    import torch


class TokenDense(keras.layers.Dense):
    """`keras.layers.Dense` on tokens, (batch, tokens, width): the same weights and numbers, in the form that the backend runs fastest.

    TensorFlow fuses product, bias and activation on (batch * tokens, width) alone. On JAX, XLA's CPU compiler transposes the gradient of
    outputs with three axes, and puts the sum of all later residuals' gradients into that, again in each block.

    PyTorch keeps three axes. Eager, product and bias are one kernel, as in `torch.nn.Linear`. Its compiler would make that an `addmm`, which
    first copies the bias into every row; apart, the bias is fused with what follows.
    """

    def call(self, inputs, training=None):
        if keras.backend.backend() != "torch":
            return _on_rows(super().call, inputs)
        if self.bias is None or torch.compiler.is_compiling():
            return super().call(inputs)
        kernel, bias = ops.convert_to_tensor(self.kernel), ops.convert_to_tensor(self.bias)
        outputs = torch.nn.functional.linear(inputs, kernel.T, bias)
        return outputs if self.activation is None else self.activation(outputs)

    def quantized_call(self, inputs, training=None):
        call = super().quantized_call
        return call(inputs) if keras.backend.backend() == "torch" else _on_rows(call, inputs)

    def quantize(self, mode=None, type_check=True, config=None):
        # Keras checks for subclasses that compute something else.
        super().quantize(mode, type_check=False, config=config)


def _on_rows(call, tokens):
    shape = ops.shape(tokens)
    outputs = call(ops.reshape(tokens, (-1, shape[-1])))
    return ops.reshape(outputs, (-1, *shape[1:-1], outputs.shape[-1]))
