"""Weights of PyTorch checkpoints into a model, and back: facebookresearch's, timm's and
transformers' layouts.
"""

from keras_deit.presets import weights
from keras_deit.presets.matching import check_match
from keras_deit.presets.tensor_names import (
    rules,
    to_keras,
    to_timm,
    to_timm_names,
    to_transformers_names,
    without_pooler,
)


def assign_tensors(model, tensors, source, origin=None):
    """Gives a model the weights of a PyTorch checkpoint; nothing is written.

    Args:
        model: `DeiTBackbone` or `DeiTImageClassifier` of the checkpoint's architecture.
        tensors: {name: NumPy array} in the layout of facebookresearch/deit, timm or transformers
            (versions 4 and 5).
        source: string, what the tensors are called in errors.
        origin: name of the preset whose published weights these are known to be, for the model
            card. Defaults to `None`.

    Raises:
        ValueError: tensors that are missing, left over, twice there or of another shape; all are
            listed.
    """
    tensors = to_timm_names(tensors)
    backbone = _backbone(model)
    if model is backbone:
        tensors = without_pooler(tensors)
    weights.assign(to_keras(tensors, _table(model), source), model, source)
    backbone._origin = origin


def timm_tensors(model):
    """A model's weights as timm names and lays them out: what its `load_state_dict(strict=True)`
    takes.

    Args:
        model: `DeiTBackbone` or `DeiTImageClassifier`.

    Returns:
        {name: NumPy array, float32}. Converted back with `assign_tensors`, they are the same to the
        bit.

    Raises:
        ValueError: a model that timm does not have: quantized, `pooling="mean"`, or one head on a
            distilled backbone.
    """
    backbone = _backbone(model)
    if model is not backbone and (model.pooling, model.use_distillation_head) != (
        "token",
        backbone.use_distillation_token,
    ):
        raise ValueError(
            "timm's DeiT reads its class token, and its distillation token if it has one, each "
            "with a head. "
            f"Received: pooling={model.pooling!r}, "
            f"use_distillation_head={model.use_distillation_head!r}, "
            f"use_distillation_token={backbone.use_distillation_token!r}"
        )
    return _tensors(model)


def transformers_tensors(model):
    """A model's weights as transformers' DeiT and ViT have them in the hub's files (the names of
    version 4).

    Args:
        model: `DeiTBackbone` or `DeiTImageClassifier`.

    Returns:
        {name: NumPy array, float32}. Converted back with `assign_tensors`, they are the same to the
        bit.

    Raises:
        ValueError: a model that transformers does not have: quantized, `pooling="mean"`, or DeiT
            III.
    """
    backbone = _backbone(model)
    if backbone.layer_scale_init_value is not None or backbone.position_scope != "all":
        raise ValueError(
            "transformers has no DeiT III: neither LayerScale nor positions of the patches alone. "
            f"Received: layer_scale_init_value={backbone.layer_scale_init_value!r}, "
            f"position_scope={backbone.position_scope!r}"
        )
    if model is not backbone and model.pooling != "token":
        raise ValueError(
            f"transformers' classifiers read the class token. Received: pooling={model.pooling!r}"
        )
    return to_transformers_names(_tensors(model))


def _tensors(model):
    state, table = weights.state_of(model), _table(model)
    check_match(
        {path: "" for path in state},
        {rule.path: "" for rule in table},
        "The model's weights are not those of DeiT in PyTorch. Convert it before `quantize`.",
    )
    return to_timm({path: array.astype("float32") for path, array in state.items()}, table)


def _backbone(model):
    return getattr(model, "backbone", model)


def _table(model):
    backbone = _backbone(model)
    return rules(backbone.get_config(), None if model is backbone else model.get_config())
