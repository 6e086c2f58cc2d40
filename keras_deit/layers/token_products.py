"""In which shape a dense layer meets tokens."""

import keras
from keras import ops


def apply_to_tokens(dense, tokens):
    """`dense(tokens)`, (batch, tokens, width), in the shape that the backend fuses best with what follows.

    TensorFlow fuses product, bias and activation on (batch * tokens, width) alone. PyTorch's compiler makes product and bias one `addmm`
    there, which first copies the bias into every row; on three axes it fuses the bias with what follows.
    """
    if keras.backend.backend() != "tensorflow":
        return dense(tokens)
    shape = ops.shape(tokens)
    outputs = dense(ops.reshape(tokens, (-1, shape[-1])))
    return ops.reshape(outputs, (-1, *shape[1:-1], outputs.shape[-1]))
