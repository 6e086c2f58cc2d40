"""What a layer made of Keras layers needs so that it still saves and loads after `quantize`."""

import keras
from keras.dtype_policies import DTypePolicyMap


def dtype_config(layer):
    """The `dtype` entry of a config: the layer's policy, and those of its quantized sub-layers by path.

    `quantize` changes the policy of single sub-layers, which a plain policy cannot say, and the layer would come back with
    float variables that do not fit the file. The docstring of `keras.dtype_policies.DTypePolicyMap` has this way of keeping them.
    """
    quantized = {
        sublayer.path: _policy_of(sublayer)
        for sublayer in layer._flatten_layers(include_self=False)
        if sublayer.quantization_mode is not None
    }
    policy = layer.dtype_policy
    if isinstance(policy, DTypePolicyMap):
        policy = policy.default_policy
    if quantized:
        policy = DTypePolicyMap(policy, quantized)
    return keras.dtype_policies.serialize(policy)


def _policy_of(layer):
    policy = layer.dtype_policy
    return policy[layer.path] if isinstance(policy, DTypePolicyMap) else policy


class CompositeLayer(keras.layers.Layer):
    """Base of the layers made of Keras layers: a config that remembers quantized sub-layers."""

    def get_config(self):
        return {**super().get_config(), "dtype": dtype_config(self)}
