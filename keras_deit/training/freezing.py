"""Which part of a model trains: its first blocks frozen, or attention, biases or the head alone."""

from typing import Any

import keras

from keras_deit.arguments import check_choice, check_positive_int
from keras_deit.layers import MultiHeadSelfAttention
from keras_deit.layers.composite import unfreeze, walk

PARTS = ("all", "attention", "bias", "head")


def freeze_blocks(model: keras.Model, num_blocks: int) -> None:
    """Freezes the embedding and the first blocks of a backbone.

    The embedding is all that precedes the blocks: patches, prefix tokens, positions and
    `pre_norm`. Call this before `compile` and `Recipe.build_optimizer`.

    Args:
        model: `DeiTBackbone`, or a classifier or distiller with one.
        num_blocks: int, 1 to `num_layers`.

    Raises:
        ValueError: if the model has no backbone, or fewer blocks.

    Example:

    >>> classifier = DeiTImageClassifier.from_preset("deit_nano_distilled_patch4_32_digits")
    >>> freeze_blocks(classifier, 3)
    >>> tuple(block.trainable for block in classifier.backbone.blocks)
    (False, False, False, True)
    """
    backbone = _backbone(model)
    num_blocks = check_positive_int("num_blocks", num_blocks)
    if num_blocks > backbone.num_layers:
        raise ValueError(
            f"`num_blocks` must be at most the number of blocks, {backbone.num_layers}. "
            f"Received: num_blocks={num_blocks}"
        )
    for layer in (*_embedding(backbone), *backbone.blocks[:num_blocks]):
        layer.trainable = False


def train_only(model: keras.Model, part: str) -> None:
    """Freezes a backbone but for a part of it. The head of a classifier stays as it is.

    Call this before `freeze_blocks`, `compile` and `Recipe.build_optimizer`. Presets and `.keras`
    files keep what is frozen.

    Args:
        model: `DeiTBackbone`, or a classifier or distiller with one.
        part: what trains of the backbone.

            - `"attention"`: the attention of each block, and the positions.
            - `"bias"`: all biases, with those of LayerNorm (`beta`).
            - `"head"`: nothing, so the head alone.
            - `"all"`: everything.

    Raises:
        ValueError: if the model has no backbone, or there is no such part.

    Example:

    >>> classifier = DeiTImageClassifier.from_preset("deit_nano_distilled_patch4_32_digits")
    >>> train_only(classifier, "attention")
    >>> block = classifier.backbone.blocks[0]
    >>> block.attention.qkv.trainable, block.mlp.trainable
    (True, False)

    References:
        [Touvron et al., 2022](https://arxiv.org/abs/2203.09795), and `--attn-only` in `main.py` of
        facebookresearch/deit at 7e160fe (attention);
        [Ben Zaken et al., 2021](https://arxiv.org/abs/2106.10199) (biases).
    """
    backbone = _backbone(model)
    check_choice("part", part, PARTS)
    if backbone._has_lora():
        raise ValueError(
            "LoRA is enabled, so its adapters train, and the head. Call `train_only` on a model "
            f"without LoRA, such as `merge_lora()` returns. Received: part={part!r}"
        )
    unfreeze(backbone)
    if part == "all":
        return
    if part == "head":
        backbone.trainable = False
        return
    chosen = {id(variable) for variable in _VARIABLES[part](backbone)}
    layers = [*_embedding(backbone), *backbone.blocks, backbone.final_norm]
    for layer in layers:
        if layer is not None:
            _train(layer, chosen)


def _train(layer, chosen):
    """Freezes whole layers where that suffices, and single variables elsewhere."""
    if not layer.weights:  # such as dropout
        return
    if not any(id(variable) in chosen for variable in layer.weights):
        layer.trainable = False
        return
    for inner in getattr(layer, "sublayers", ()):
        _train(inner, chosen)
    for variable in layer.weights:
        variable.trainable = id(variable) in chosen


def _attention(backbone):
    yield from (
        variable
        for block in backbone.blocks
        for _, layer, _ in walk([block], backbone)
        if isinstance(layer, MultiHeadSelfAttention)
        for variable in layer.weights
    )
    yield from (v for v in backbone.token_position_embedding.weights if v.name == "positions")


def _biases(backbone):
    return [variable for variable in backbone.weights if variable.name in ("bias", "beta")]


_VARIABLES: dict[str, Any] = {"attention": _attention, "bias": _biases}


def _embedding(backbone):
    parts = (backbone.patch_embedding, backbone.token_position_embedding, backbone.pre_norm)
    return [layer for layer in parts if layer is not None]


def _backbone(model):
    """The backbone of a backbone, a classifier, or a model that trains one."""
    found = getattr(model, "_get_backbone", lambda: model)()
    if not hasattr(found, "blocks") or not hasattr(found, "token_position_embedding"):
        raise ValueError(
            "`model` must be a `DeiTBackbone`, or have one as its `backbone`. For a model of your "
            f"own, set `trainable = False` on its layers. Received: model={model!r}"
        )
    return found
