"""Layers that contain Keras layers, and how their configs restore them.

`quantize` changes the dtype policy of single sub-layers, and each may be frozen on its own. So
three constructor arguments of such a layer also describe its sub-layers, by their paths inside the
layer, joined by "/":

- `dtype`: a policy, or a `DTypePolicyMap` with the policies of quantized sub-layers;
- `trainable`: a bool, or a dict with the layer's own value under "" and each sub-layer that
  differs from the layer around it. The dict of a model also has the frozen variables of layers that
  train, with a dot before their names: `"block_0/mlp/projection.kernel"`;
- `quantization_config`: `None`, or {path: `keras.quantizers.QuantizationConfig`} of quantized
  sub-layers.
"""

from typing import Any

import keras
import numpy as np
from keras.dtype_policies import DTypePolicyMap


def own_policy(dtype):
    """The layer's own policy from its `dtype` argument."""
    policy = keras.dtype_policies.get(dtype)
    return policy.default_policy if isinstance(policy, DTypePolicyMap) else policy


def own_trainable(trainable):
    """The layer's own value from its `trainable` argument."""
    given = trainable if isinstance(trainable, dict) else {"": trainable}
    if "" not in given or not all(
        isinstance(path, str) and isinstance(value, (bool, np.bool_))
        for path, value in given.items()
    ):
        raise ValueError(
            '`trainable` must be `True` or `False`, or a dict of them: the layer\'s own under "", '
            f"and those of its sub-layers by their paths. Received: trainable={trainable!r}"
        )
    return trainable[""] if isinstance(trainable, dict) else trainable


class SublayerArguments:
    """The part of a layer's arguments that each of its sub-layers gets."""

    def __init__(self, dtype=None, trainable=True, quantization_config=None):
        self._dtype = keras.dtype_policies.get(dtype)
        own_trainable(trainable)
        _check_quantization_config(quantization_config)
        self._trainable = trainable
        self._quantization_config = quantization_config or {}

    def __call__(self, name, trainable=None):
        """The keyword arguments for creating the sub-layer `name`.

        Args:
            name: string.
            trainable: bool, the layer's current value if it changed after construction.
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

    def freeze_variables(self, sublayers, model):
        """Freezes the variables of built layers that `trainable` names, if they are there."""
        given = self._trainable if isinstance(self._trainable, dict) else {}
        for path, _, variable in _variables(sublayers, model):
            if not given.get(path, True):
                variable.trainable = False

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
        given = {path: value for path, value in given.items() if "." not in path}
        own, inner = given.get(name, default), _below(name, given)
        return {"": own, **inner} if inner else own

    def _quantization_config_of(self, name, dtype):
        """The config of a `Dense` that is still quantized, or the configs of its sub-layers."""
        config, inner = self._quantization_config.get(name), _below(name, self._quantization_config)
        if config is not None and dtype.quantization_mode is not None:
            config = (
                keras.saving.deserialize_keras_object(config, safe_mode=True)
                if isinstance(config, dict)
                else config
            )
            return {"quantization_config": config}
        return {"quantization_config": inner} if inner else {}


def _check_quantization_config(value):
    kinds = (dict, keras.quantizers.QuantizationConfig)
    if value is not None and not (
        isinstance(value, dict)
        and all(isinstance(path, str) and isinstance(value[path], kinds) for path in value)
    ):
        raise ValueError(
            "`quantization_config` must be `None`, or a dict of `keras.quantizers."
            "QuantizationConfig` by the paths of sub-layers, as `get_config` returns it. "
            f"Received: quantization_config={value!r}"
        )


def _below(name, entries):
    return {
        key.removeprefix(f"{name}/"): value
        for key, value in entries.items()
        if key.startswith(f"{name}/")
    }


def unfreeze(model):
    """Makes every layer and variable train."""
    model.trainable = False  # on TensorFlow, setting the value that it has would do nothing
    model.trainable = True


def _frozen_variables(sublayers, model):
    """{path: False} of the frozen variables of layers that train.

    With LoRA it is empty: LoRA freezes all but the adapters, and the file has no adapters.
    """
    found = list(_variables(sublayers, model))
    if any(getattr(layer, "lora_enabled", False) for _, layer, _ in found):
        return {}
    return {
        path: False
        for path, layer, variable in found
        if layer.trainable and not variable.trainable and layer.quantization_mode is None
    }


def _variables(sublayers, around):
    """Yields (path, layer, variable) for the variables of all layers inside `around`."""
    for path, layer, _ in walk(sublayers, around):
        inner = layer.sublayers if isinstance(layer, CompositeLayer) else ()
        of_others = {id(variable) for sublayer in inner for variable in sublayer.weights}
        for variable in layer.weights:
            if id(variable) not in of_others:
                yield f"{path}.{variable.name}", layer, variable


def sublayers_config(layer, sublayers):
    """The config entries that restore sub-layers: `dtype`, `trainable`, `quantization_config`."""
    policies, trainable, quantization = {}, {}, {}
    for path, sublayer, around in walk(sublayers, layer):
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


def walk(sublayers, around, prefix=""):
    """Yields (path, layer, layer around it) for all layers inside `around`."""
    for layer in sublayers:
        yield prefix + layer.name, layer, around
        inner = layer.sublayers if isinstance(layer, CompositeLayer) else ()
        yield from walk(inner, layer, f"{prefix}{layer.name}/")


def model_config(model, sublayers):
    """As `sublayers_config`, with the frozen variables of layers that train."""
    config, frozen = sublayers_config(model, sublayers), _frozen_variables(sublayers, model)
    if frozen:
        trainable = config["trainable"]
        config["trainable"] = {
            **(trainable if isinstance(trainable, dict) else {"": trainable}),
            **frozen,
        }
    return config


class CompositeLayer(keras.layers.Layer):
    """Base class of layers that contain Keras layers.

    A subclass creates each sub-layer with `self.name = SomeLayer(..., **self.sublayer("name"))`.
    Saving, freezing and quantizing then need no code in the subclass.
    """

    def __init__(self, dtype=None, trainable=True, quantization_config=None, **kwargs):
        sublayer_arguments = SublayerArguments(dtype, trainable, quantization_config)
        super().__init__(dtype=own_policy(dtype), trainable=own_trainable(trainable), **kwargs)
        self._sublayer_arguments = sublayer_arguments
        self._sublayer_names = []

    def sublayer(self, name: str) -> dict[str, Any]:
        """The keyword arguments for the sub-layer that becomes the attribute `name`."""
        if name not in self._sublayer_names:
            self._sublayer_names.append(name)
        return self._sublayer_arguments(name, self.trainable)

    @property
    def sublayers(self):
        """The sub-layers created so far."""
        return [getattr(self, name) for name in self._sublayer_names]

    def get_config(self):
        return {**super().get_config(), **sublayers_config(self, self.sublayers)}
