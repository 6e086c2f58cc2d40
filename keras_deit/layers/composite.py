"""What a layer made of Keras layers needs so that it still saves and loads after `quantize`.

`quantize` changes the dtype policy of single sub-layers. A config that keeps one policy alone would bring them back as float, which
does not fit the file; so the `dtype` of such a layer's config is a `DTypePolicyMap`, whose keys are the sub-layers' names, joined by
"/". They are relative to the layer: where it stands in a model may differ between saving and loading.
"""

import keras
from keras.dtype_policies import DTypePolicyMap


def dtype_config(policy, sublayers):
    """The `dtype` entry of a config: the layer's own policy, with those of its quantized sub-layers."""
    quantized = dict(_quantized(sublayers))
    return keras.dtype_policies.serialize(DTypePolicyMap(policy, quantized) if quantized else policy)


def own_policy(dtype):
    """The policy of the layer itself, out of its `dtype` argument."""
    policy = keras.dtype_policies.get(dtype)
    return policy.default_policy if isinstance(policy, DTypePolicyMap) else policy


def sublayer_policy(dtype, name):
    """The `dtype` argument of a sub-layer, out of that of the layer around it."""
    policy = keras.dtype_policies.get(dtype)
    if not isinstance(policy, DTypePolicyMap):
        return policy
    if name in policy:
        return policy[name]
    inner = {key.removeprefix(f"{name}/"): value for key, value in policy.items() if key.startswith(f"{name}/")}
    return DTypePolicyMap(policy.default_policy, inner) if inner else policy.default_policy


def _quantized(sublayers, prefix=""):
    for layer in sublayers:
        if layer.quantization_mode is not None:
            yield prefix + layer.name, layer.dtype_policy
        yield from _quantized(layer._flatten_layers(include_self=False, recursive=False), f"{prefix}{layer.name}/")


class CompositeLayer(keras.layers.Layer):
    """Base of the layers made of Keras layers. Each makes its sub-layers with `dtype=self.dtype_of(name), name=name`."""

    def __init__(self, dtype=None, **kwargs):
        super().__init__(dtype=own_policy(dtype), **kwargs)
        self._dtype_argument = keras.dtype_policies.get(dtype)

    def dtype_of(self, name):
        return sublayer_policy(self._dtype_argument, name)

    def get_config(self):
        sublayers = self._flatten_layers(include_self=False, recursive=False)
        return {**super().get_config(), "dtype": dtype_config(self.dtype_policy, sublayers)}
