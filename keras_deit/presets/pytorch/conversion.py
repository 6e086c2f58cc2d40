"""Weights of PyTorch checkpoints into a model, and back."""

from typing import Any

import numpy as np

from keras_deit.presets import weights
from keras_deit.presets.mismatches import refuse_mismatches
from keras_deit.presets.pytorch.tensor_names import (
    rules,
    to_keras,
    to_timm,
    to_timm_names,
    to_transformers_names,
    without_unused,
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
    table = _table(model)
    tensors = without_unused(tensors, table, has_head=model is not backbone)
    weights.assign(to_keras(tensors, table, source), model, source)
    backbone._origin = origin


def timm_tensors(model: Any) -> dict[str, np.ndarray]:
    """Returns a model's weights in timm's layout, for `load_state_dict(strict=True)`.

    Args:
        model: `DeiTBackbone` or `DeiTImageClassifier`.

    Returns:
        {name: float32 NumPy array}. `assign_tensors` converts them back bit for bit.

    Raises:
        ValueError: if timm has no such model: quantized weights, `pooling="token_and_mean"`, one
            head on a distilled backbone, rotary positions, or a norm before the first block.
    """
    backbone = _backbone(model)
    if model is not backbone and (
        model.pooling == "token_and_mean"
        or model.use_distillation_head != backbone.use_distillation_token
    ):
        raise ValueError(
            "timm's models pool by token, mean or map, and have a distillation head if the "
            "backbone has a distillation token. Received: "
            f"pooling={model.pooling!r}, use_distillation_head={model.use_distillation_head!r}, "
            f"use_distillation_token={backbone.use_distillation_token!r}"
        )
    _refuse(
        backbone,
        "timm's models with rotary positions or a norm before the first block lack biases that "
        "this one has",
        position_scope=("all", "patches"),
        use_pre_norm=(False,),
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
        ValueError: if transformers' DeiT and ViT are no such model: quantized weights,
            `pooling="mean"`, DeiT III, or other parts that they lack.
    """
    backbone = _backbone(model)
    _refuse(
        backbone,
        "transformers' DeiT and ViT have no such parts",
        layer_scale_init_value=(None,),
        position_scope=("all",),
        use_class_token=(True,),
        num_register_tokens=(0,),
        use_qk_norm=(False,),
        use_gated_mlp=(False,),
        use_pre_norm=(False,),
        use_final_norm=(True,),
    )
    if model is not backbone and (model.pooling != "token" or model.use_head_norm):
        raise ValueError(
            'transformers\' classifiers need `pooling="token"` and `use_head_norm=False`. '
            f"Received: pooling={model.pooling!r}, use_head_norm={model.use_head_norm!r}"
        )
    return to_transformers_names(_tensors(model))


def _refuse(backbone, problem, **supported):
    """Lists the arguments of a backbone that a library's models do not have."""
    others = {
        name: getattr(backbone, name)
        for name, values in supported.items()
        if getattr(backbone, name) not in values
    }
    if others:
        listed = ", ".join(f"{name}={value!r}" for name, value in others.items())
        needed = ", ".join(f"{name}={' or '.join(map(repr, supported[name]))}" for name in others)
        raise ValueError(f"{problem}. Needed: {needed}. Received: {listed}")


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
