"""The LayerNorm of a block, in the form that each backend runs fastest."""

import keras
from keras import ops

if keras.backend.backend() == "torch":
    import torch


class TokenNorm(keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` over the last axis: the same weights and numbers.

    Keras casts half precision to float32 and back. PyTorch's kernel for CPUs computes in float32 by itself, without the two copies.
    """

    def call(self, inputs):
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if keras.backend.backend() != "torch" or inputs.device.type != "cpu" or dtype != self.compute_dtype:
            return super().call(inputs)
        gamma, beta = (ops.convert_to_tensor(weight) for weight in (self.gamma, self.beta))
        return torch.nn.functional.layer_norm(inputs, gamma.shape, gamma, beta, self.epsilon)
