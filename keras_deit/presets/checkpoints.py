"""Weights of PyTorch checkpoints into a model, and back: facebookresearch's, timm's and transformers' layouts."""

from keras_deit.presets import weights
from keras_deit.presets.layout import has_two_heads
from keras_deit.presets.matching import check_match
from keras_deit.presets.tensor_names import rules, to_keras, to_timm, to_timm_names, to_transformers_names


def read_tensors(path):
    """{name: NumPy array} of a safetensors file.

    Raises:
        ValueError: not a safetensors file, or one that was cut short.
    """
    # On demand: `import keras_deit` should not pay for it.
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        # "pread": a mapped file would stay in memory beside its tensors.
        return load_file(path, backend="pread")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}. Copy or download it again.") from error


def assign_tensors(model, tensors, source):
    """Gives a model the weights of a PyTorch checkpoint; nothing is written.

    Args:
        model: `DeiTBackbone` or `DeiTImageClassifier` of the checkpoint's architecture.
        tensors: {name: NumPy array} in the layout of facebookresearch/deit, timm or transformers (versions 4 and 5).
        source: string, what the tensors are called in errors.

    Raises:
        ValueError: tensors that are missing, left over or of another shape; all are listed.
    """
    weights.assign(to_keras(to_timm_names(tensors), _table(model), source), model, source)


def timm_tensors(model):
    """A model's weights as timm names and lays them out: what its `load_state_dict(strict=True)` takes.

    Args:
        model: `DeiTBackbone` or `DeiTImageClassifier`.

    Returns:
        {name: NumPy array, float32}. Converted back with `assign_tensors`, they are the same to the bit.

    Raises:
        ValueError: a model that timm does not have: quantized, `pooling="mean"`, or one head on a distilled backbone.
    """
    config = model.get_config()
    if model is not _backbone(model):
        two_heads = has_two_heads(config, model.backbone.get_config())
        if config["pooling"] != "token" or two_heads != model.backbone.use_distillation_token:
            raise ValueError(
                "timm's DeiT reads its class token, and its distillation token if it has one, each with a head. "
                f"Received: pooling={config['pooling']!r}, use_distillation_head={two_heads!r}, "
                f"use_distillation_token={model.backbone.use_distillation_token!r}"
            )
    state, table = weights.state_of(model), _table(model)
    check_match(
        {path: "" for path in state},
        {rule.path: "" for rule in table},
        "The model's weights are not those of timm's DeiT. Convert it before `quantize`.",
    )
    return to_timm({path: array.astype("float32") for path, array in state.items()}, table)


def transformers_tensors(model):
    """A model's weights as transformers' DeiT or ViT names and lays them out in the hub's files, as `timm_tensors` does for timm."""
    return to_transformers_names(timm_tensors(model))


def _backbone(model):
    return getattr(model, "backbone", model)


def _table(model):
    backbone = _backbone(model)
    return rules(backbone.get_config(), None if model is backbone else model.get_config())
