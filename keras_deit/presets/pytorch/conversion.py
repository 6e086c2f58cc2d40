"""Weights of PyTorch checkpoints into a model, and back."""

from typing import Any

import numpy as np

from keras_deit.presets import weights
from keras_deit.presets.mismatches import refuse_mismatches
from keras_deit.presets.pytorch.tensor_names import (
    of_backbone,
    rules,
    to_keras,
    to_timm,
    to_timm_names,
    to_transformers_names,
)


def assign_tensors(
    model: Any, tensors: dict[str, np.ndarray], source: str, origin: Any = None
) -> None:
    """Assigns the weights of a PyTorch checkpoint to a model.

    Args:
        model: `DeiTBackbone` or `DeiTImageClassifier` of the checkpoint's architecture.
        tensors: {name: NumPy array} in the layout of facebookresearch/deit, timm or transformers
            (version 4 or 5).
        source: string, name of the checkpoint in errors.
        origin: string, name of the preset whose published weights these are, for the model card.
            Defaults to `None`.

    Raises:
        ValueError: if tensors are missing, unexpected, duplicated or of a wrong shape; the message
            lists all of them.
    """
    tensors = to_timm_names(tensors)
    backbone = _backbone(model)
    if model is backbone:
        tensors = of_backbone(tensors)
    weights.assign(to_keras(tensors, _table(model), source), model, source)
    backbone._origin = origin


def timm_tensors(model: Any) -> dict[str, np.ndarray]:
    """Returns a model's weights in timm's layout, for `load_state_dict(strict=True)`.

    Args:
        model: `DeiTBackbone` or `DeiTImageClassifier`.

    Returns:
        {name: float32 NumPy array}. `assign_tensors` converts them back bit for bit.

    Raises:
        ValueError: if timm has no such model: quantized weights, `pooling="mean"`, or one head on a
            distilled backbone.
    """
    backbone = _backbone(model)
    if model is not backbone and (model.pooling, model.use_distillation_head) != (
        "token",
        backbone.use_distillation_token,
    ):
        raise ValueError(
            'timm\'s DeiT needs `pooling="token"`, and a distillation head if the backbone has a '
            f"distillation token. Received: pooling={model.pooling!r}, "
            f"use_distillation_head={model.use_distillation_head!r}, "
            f"use_distillation_token={backbone.use_distillation_token!r}"
        )
    return _tensors(model)


def transformers_tensors(model: Any) -> dict[str, np.ndarray]:
    """Returns a model's weights in the layout of transformers' DeiT and ViT.

    The names are those of the files on the hub, which version 4 wrote and version 5 reads.

    Args:
        model: `DeiTBackbone` or `DeiTImageClassifier`.

    Returns:
        {name: float32 NumPy array}. `assign_tensors` converts them back bit for bit.

    Raises:
        ValueError: if transformers has no such model: quantized weights, `pooling="mean"`, or DeiT
            III.
    """
    backbone = _backbone(model)
    if backbone.layer_scale_init_value is not None or backbone.position_scope != "all":
        raise ValueError(
            "transformers has no DeiT III: its models need `layer_scale_init_value=None` and "
            '`position_scope="all"`. '
            f"Received: layer_scale_init_value={backbone.layer_scale_init_value!r}, "
            f"position_scope={backbone.position_scope!r}"
        )
    if model is not backbone and model.pooling != "token":
        raise ValueError(
            f'transformers\' classifiers need `pooling="token"`. Received: '
            f"pooling={model.pooling!r}"
        )
    return to_transformers_names(_tensors(model))


def _tensors(model):
    state, table = weights.state_of(model), _table(model)
    refuse_mismatches(
        {path: "" for path in state},
        {rule.path: "" for rule in table},
        "The model's weights do not match a DeiT in PyTorch. Convert the model before `quantize`.",
    )
    return to_timm({path: array.astype("float32") for path, array in state.items()}, table)


def _backbone(model):
    return getattr(model, "backbone", model)


def _table(model):
    backbone = _backbone(model)
    return rules(backbone.get_config(), None if model is backbone else model.get_config())
