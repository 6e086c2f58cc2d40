"""What a layer made of Keras layers needs so that it saves and loads what has become of them.

`quantize` changes the dtype policy of single sub-layers, and any of them may be frozen. A config
that speaks of the layer alone would bring them back as float, which does not fit the file, and
trainable. So three arguments of such a layer speak of its sub-layers, too, by their names, joined
by "/". They are relative to the layer: where it stands in a model may differ between saving and
loading.

    dtype                  a policy, or Keras' `DTypePolicyMap` with those of quantized sub-layers
    trainable              a bool, or {"": the layer's own, name: that of a sub-layer which differs
    from the layer around it} quantization_config    `None`, or {name:
    `keras.quantizers.QuantizationConfig` of a quantized sub-layer}
"""

import keras
from keras.dtype_policies import DTypePolicyMap


def own_policy(dtype):
    """The policy of the layer itself, out of its `dtype` argument."""
    policy = keras.dtype_policies.get(dtype)
    return policy.default_policy if isinstance(policy, DTypePolicyMap) else policy


def own_trainable(trainable):
    """Whether the layer itself trains, out of its `trainable` argument."""
    return trainable[""] if isinstance(trainable, dict) else trainable


class SublayerArguments:
    """What the arguments of a layer say of the layers inside it."""

    def __init__(self, dtype=None, trainable=True, quantization_config=None):
        self._dtype = keras.dtype_policies.get(dtype)
        self._trainable = trainable
        self._quantization_config = quantization_config or {}

    def of(self, name, trainable=None):
        """The arguments of the sub-layer `name`. `trainable`: whether the layer around it trains,
        if that has changed since.
        """
        dtype = self._dtype_of(name)
        return {
            "name": name,
            "dtype": dtype,
            "trainable": self._trainable_of(
                name, own_trainable(self._trainable) if trainable is None else trainable
            ),
            **self._quantization_config_of(name, dtype),
        }

    def _dtype_of(self, name):
        if not isinstance(self._dtype, DTypePolicyMap):
            return self._dtype
        if name in self._dtype:
            return self._dtype[name]
        inner = _below(name, self._dtype)
        return (
            DTypePolicyMap(self._dtype.default_policy, inner)
            if inner
            else self._dtype.default_policy
        )

    def _trainable_of(self, name, default):
        given = self._trainable if isinstance(self._trainable, dict) else {}
        own, inner = given.get(name, default), _below(name, given)
        return {"": own, **inner} if inner else own

    def _quantization_config_of(self, name, dtype):
        """Of a `Dense`, its own, if its policy is still that of a quantized layer; of another
        layer, those of its sub-layers.
        """
        config, inner = self._quantization_config.get(name), _below(name, self._quantization_config)
        if config is not None and dtype.quantization_mode is not None:
            config = (
                keras.saving.deserialize_keras_object(config)
                if isinstance(config, dict)
                else config
            )
            return {"quantization_config": config}
        return {"quantization_config": inner} if inner else {}


def _below(name, entries):
    return {
        key.removeprefix(f"{name}/"): value
        for key, value in entries.items()
        if key.startswith(f"{name}/")
    }


def sublayers_config(layer, sublayers):
    """The entries of a layer's config that bring its sub-layers back as they are: `dtype`,
    `trainable`, `quantization_config`.
    """
    policies, trainable, quantization = {}, {}, {}
    for path, sublayer, around in _walk(sublayers, layer):
        if sublayer.trainable != around.trainable:
            trainable[path] = sublayer.trainable
        if sublayer.quantization_mode is not None:
            policies[path] = sublayer.dtype_policy
            config = getattr(sublayer, "quantization_config", None)
            if config is not None:
                quantization[path] = keras.saving.serialize_keras_object(config)
    policy = layer.dtype_policy
    return {
        "dtype": keras.dtype_policies.serialize(
            DTypePolicyMap(policy, policies) if policies else policy
        ),
        "trainable": {"": layer.trainable, **trainable} if trainable else layer.trainable,
        "quantization_config": quantization or None,
    }


def _walk(sublayers, around, prefix=""):
    """(path, layer, the layer around it) of the sub-layers, and of those inside them."""
    for layer in sublayers:
        yield prefix + layer.name, layer, around
        inner = layer.sublayers if isinstance(layer, CompositeLayer) else ()
        yield from _walk(inner, layer, f"{prefix}{layer.name}/")


class CompositeLayer(keras.layers.Layer):
    """Base of the layers made of Keras layers. Each makes its sub-layers with
    `self.name = ...(**self.sublayer("name"))`.
    """

    def __init__(self, dtype=None, trainable=True, quantization_config=None, **kwargs):
        super().__init__(dtype=own_policy(dtype), trainable=own_trainable(trainable), **kwargs)
        self._sublayer_arguments = SublayerArguments(dtype, trainable, quantization_config)
        self._sublayer_names = []

    def sublayer(self, name):
        """The arguments of the sub-layer `name`, which is to be the attribute of that name."""
        if name not in self._sublayer_names:
            self._sublayer_names.append(name)
        return self._sublayer_arguments.of(name, self.trainable)

    @property
    def sublayers(self):
        """The sub-layers made so far."""
        return [getattr(self, name) for name in self._sublayer_names]

    def get_config(self):
        return {**super().get_config(), **sublayers_config(self, self.sublayers)}
