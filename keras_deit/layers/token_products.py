"""In which shape a dense layer meets tokens."""

import keras
from keras import ops


def apply_to_tokens(dense, tokens):
    """`dense(tokens)`, (batch, tokens, width), in the shape that the backend fuses best with what follows.

    TensorFlow fuses product, bias and activation on (batch * tokens, width) alone. On JAX, XLA's CPU compiler transposes the gradient of
    outputs with three axes, and puts the sum of all later residuals' gradients into that, again in each block. PyTorch's compiler makes
    product and bias one `addmm` on two axes, which first copies the bias into every row; on three it fuses the bias with what follows.
    """
    if keras.backend.backend() == "torch":
        return dense(tokens)
    shape = ops.shape(tokens)
    outputs = dense(ops.reshape(tokens, (-1, shape[-1])))
    return ops.reshape(outputs, (-1, *shape[1:-1], outputs.shape[-1]))
