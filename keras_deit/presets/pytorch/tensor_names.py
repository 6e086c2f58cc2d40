"""One table that maps PyTorch tensors to our variables, used in both directions. Plain NumPy.

The table has timm's names. facebookresearch's files differ only in the names of LayerScale;
transformers' names are translated first. Sources: facebookresearch/deit at 7e160fe (models.py,
models_v2.py), timm 1.0.31, transformers 5.24.0.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np
from absl import logging

from keras_deit.arguments import as_pair
from keras_deit.presets.architecture import (
    has_two_heads,
    head_inputs,
    num_channels,
    num_positions,
)
from keras_deit.presets.mismatches import refuse_mismatches
from keras_deit.presets.tensor_values import refuse_non_finite, refuse_non_floats

# How the paths of a classifier's own variables begin
HEAD_LAYERS = ("head/", "head_norm/", "attention_pooling/")


@dataclasses.dataclass(frozen=True)
class Rule:
    """The tensors that one variable is made of, and the conversion in both directions."""

    names: tuple
    shapes: tuple  # of the tensors, in the order of `names`
    path: str
    to_keras: Callable  # arrays in the order of `names` -> array
    to_timm: Callable  # array -> list of arrays in the order of `names`


def rules(backbone_config, classifier_config=None):
    """Returns the table for one architecture.

    Args:
        backbone_config: dict, the arguments of a `DeiTBackbone`.
        classifier_config: dict, the arguments of a `DeiTImageClassifier`; `None` for a backbone
            alone.

    Returns:
        List of `Rule`, one for each variable.
    """
    dim = backbone_config["hidden_dim"]
    table = [*_embedding_rules(backbone_config), *_block_rules(backbone_config)]
    if backbone_config.get("use_pre_norm"):
        table += _norm("norm_pre", dim, "pre_norm")
    if backbone_config.get("use_final_norm", True):
        table += _norm("norm", dim, "final_norm")
    if classifier_config is not None:
        table += _head_rules(backbone_config, classifier_config)
    return table


def _embedding_rules(backbone_config):
    channels, dim = num_channels(backbone_config), backbone_config["hidden_dim"]
    patch_size = as_pair(backbone_config["patch_size"])
    # (name, number of tokens)
    prefix_tokens = [("cls_token", 1)] if backbone_config.get("use_class_token", True) else []
    if backbone_config.get("use_distillation_token"):
        prefix_tokens.append(("dist_token", 1))
    if backbone_config.get("num_register_tokens"):
        prefix_tokens.append(("reg_token", backbone_config["num_register_tokens"]))
    table = [
        Rule(
            ("patch_embed.proj.weight",),
            ((dim, channels, *patch_size),),
            "patch_embedding/projection/kernel",
            # (D, C, ph, pw) -> (ph * pw * C, D)
            lambda w: w.transpose(2, 3, 1, 0).reshape(-1, dim),
            lambda kernel: [kernel.reshape(*patch_size, channels, dim).transpose(3, 2, 0, 1)],
        ),
        _unchanged("patch_embed.proj.bias", (dim,), "patch_embedding/projection/bias"),
    ]
    if prefix_tokens:
        names, counts = zip(*prefix_tokens)
        table.append(
            Rule(
                names,
                tuple((1, count, dim) for count in counts),
                "token_position_embedding/prefix_tokens",
                lambda *tokens: np.concatenate(tokens, axis=1)[0],
                lambda tokens: np.split(tokens[None], np.cumsum(counts)[:-1], axis=1),
            )
        )
    if num_positions(backbone_config):
        table.append(
            Rule(
                ("pos_embed",),
                ((1, num_positions(backbone_config), dim),),
                "token_position_embedding/positions",
                lambda positions: positions[0],
                lambda array: [array[None]],
            )
        )
    return table


def _block_rules(backbone_config):
    dim, intermediate_dim = backbone_config["hidden_dim"], backbone_config["intermediate_dim"]
    first = 2 * intermediate_dim if backbone_config.get("use_gated_mlp") else intermediate_dim
    head_dim = dim // backbone_config["num_heads"]
    table = []
    for index in range(backbone_config["num_layers"]):
        name, path = f"blocks.{index}", f"block_{index}"
        table += _norm(f"{name}.norm1", dim, f"{path}/attention_norm")
        table += _dense(f"{name}.attn.qkv", (3 * dim, dim), f"{path}/attention/qkv")
        table += _dense(f"{name}.attn.proj", (dim, dim), f"{path}/attention/projection")
        table += _norm(f"{name}.norm2", dim, f"{path}/mlp_norm")
        if backbone_config.get("use_qk_norm"):
            table += _norm(f"{name}.attn.q_norm", head_dim, f"{path}/attention/query_norm")
            table += _norm(f"{name}.attn.k_norm", head_dim, f"{path}/attention/key_norm")
        table += _dense(f"{name}.mlp.fc1", (first, dim), f"{path}/mlp/intermediate")
        table += _dense(f"{name}.mlp.fc2", (dim, intermediate_dim), f"{path}/mlp/projection")
        if backbone_config.get("layer_scale_init_value") is not None:
            table.append(_unchanged(f"{name}.ls1.gamma", (dim,), f"{path}/attention_scale/gamma"))
            table.append(_unchanged(f"{name}.ls2.gamma", (dim,), f"{path}/mlp_scale/gamma"))
    return table


def _head_rules(backbone_config, classifier_config):
    num_classes, dim = classifier_config.get("num_classes"), backbone_config["hidden_dim"]
    if num_classes is not None and has_two_heads(classifier_config, backbone_config):
        return [
            *_dense("head", (num_classes, dim), "head/class_head"),
            *_dense("head_dist", (num_classes, dim), "head/distillation_head"),
        ]
    table = []
    if num_classes is not None:
        shape = (num_classes, head_inputs(classifier_config, backbone_config))
        table += _dense("head", shape, "head")
    if classifier_config.get("pooling") == "map":
        table += _attention_pooling_rules(dim, backbone_config["intermediate_dim"])
    if classifier_config.get("use_head_norm"):
        table += _norm("fc_norm", dim, "head_norm")
    return table


def _attention_pooling_rules(dim, intermediate_dim):
    name, path = "attn_pool", "attention_pooling"
    return [
        Rule(
            (f"{name}.latent",),
            ((1, 1, dim),),
            f"{path}/latent",
            lambda latent: latent[0],
            lambda array: [array[None]],
        ),
        *_dense(f"{name}.q", (dim, dim), f"{path}/query"),
        *_dense(f"{name}.kv", (2 * dim, dim), f"{path}/key_value"),
        *_dense(f"{name}.proj", (dim, dim), f"{path}/projection"),
        *_norm(f"{name}.norm", dim, f"{path}/norm"),
        *_dense(f"{name}.mlp.fc1", (intermediate_dim, dim), f"{path}/mlp/intermediate"),
        *_dense(f"{name}.mlp.fc2", (dim, intermediate_dim), f"{path}/mlp/projection"),
    ]


def to_keras(tensors, table, source):
    """Converts {tensor name: array} to {variable path: array}.

    Raises:
        ValueError: unless every tensor is used exactly once and has finite floats; the message
            lists what differs.
    """
    refuse_non_floats(tensors, source)
    refuse_mismatches(
        {name: tuple(array.shape) for name, array in tensors.items()},
        {name: shape for rule in table for name, shape in zip(rule.names, rule.shapes)},
        f"The tensors of {source} (here under timm's names) do not match the architecture.",
    )
    refuse_non_finite(tensors, source)
    return {rule.path: rule.to_keras(*(tensors[name] for name in rule.names)) for rule in table}


def to_timm(state, table):
    """Converts {variable path: array} to {tensor name: array}: the exact inverse of `to_keras`."""
    return {
        name: np.ascontiguousarray(array)
        for rule in table
        for name, array in zip(rule.names, rule.to_timm(state[rule.path]))
    }


def to_timm_names(tensors, zeros=None):
    """Renames the tensors of any of the three layouts to timm's names; unknown names stay.

    Args:
        tensors: {name: array}.
        zeros: regular expression, `zeros` of `PyTorchPreset`.
    """
    renamed = {}
    for name, array in tensors.items():
        timm_name = _to_timm_name(name)
        if timm_name in renamed:
            others = [other for other in tensors if _to_timm_name(other) == timm_name]
            raise ValueError(
                f"Several tensors map to timm's {timm_name}: {', '.join(others)}. Keep one of them."
            )
        renamed[timm_name] = array
    for whole, parts in _PARTS.items():
        _join(renamed, whole, parts, zeros)
    # What is left belongs to MLPs without a gate.
    return {name.replace(".mlp.value.", ".mlp.fc1."): array for name, array in renamed.items()}


# timm's name of a module, and the parts of it that others keep apart
_PARTS = {
    "attn.qkv": ("attn.query", "attn.key", "attn.value"),
    "mlp.fc1": ("mlp.gate", "mlp.value"),
}


def _join(tensors, whole, parts, zeros):
    """Joins the parts of a module in each block, in place."""
    first = re.compile(rf"blocks\.\d+\.{re.escape(parts[0])}\.(weight|bias)")
    for name in [name for name in tensors if first.fullmatch(name)]:
        names = [name.replace(parts[0], part) for part in parts]
        for missing in set(names) - set(tensors):
            if zeros is not None and re.fullmatch(zeros, missing):
                tensors[missing] = np.zeros_like(tensors[name])
        if all(each in tensors for each in names):
            tensors[name.replace(parts[0], whole)] = np.concatenate(
                [tensors.pop(each) for each in names]
            )


def without_class_position(tensors):
    """Adds the class token's position to the token, where no other prefix token has one."""
    token, positions = tensors.get("cls_token"), tensors.get("pos_embed")
    has_both = token is not None and positions is not None and positions.ndim == 3
    if not has_both or token.shape != positions[:, :1].shape:
        return tensors  # which are then refused by name
    return {**tensors, "cls_token": token + positions[:, :1], "pos_embed": positions[:, 1:]}


# Before the names of a backbone inside another model
_BASE = r"(?:deit\.|vit\.|dinov2\.|dinov2_with_registers\.)?"
_OF_TRAINING = rf"{_BASE}embeddings\.mask_token|mask_token"
_OF_HEADS = r"(?:pooler\.dense|decoder\.0|attn_pool|fc_norm)\..*"


def without_unused(tensors, table, has_head):
    """Drops, with a warning, the mask token of pre-training and, for a model without a head, what
    others have after the backbone: pooling, its norm, and the decoder of pre-training.
    """
    unused = re.compile(_OF_TRAINING if has_head else f"{_OF_TRAINING}|{_OF_HEADS}")
    used = {name for rule in table for name in rule.names}
    names = [name for name in tensors if unused.fullmatch(name) and name not in used]
    if names:
        model = "DeiTImageClassifier" if has_head else "DeiTBackbone"
        logging.warning("Ignored, because `%s` does not use them: %s", model, ", ".join(names))
    return {name: array for name, array in tensors.items() if name not in names}


def to_transformers_names(tensors):
    """Renames timm's tensors to transformers' names of version 4, as in the files on the hub."""
    two_heads = "head_dist.weight" in tensors
    base = "deit." if "dist_token" in tensors else "vit."
    if "head.weight" not in tensors:
        base = ""
    renamed = {}
    for name, array in tensors.items():
        if ".attn.qkv." in name:
            for third, part in zip(("query", "key", "value"), np.split(array, 3)):
                renamed[_to_transformers_name(name.replace("qkv", third), base, two_heads)] = part
        else:
            renamed[_to_transformers_name(name, base, two_heads)] = array
    return renamed


# timm's name of a module or tensor: transformers' names in version 4 (as in the files on the hub)
# and in version 5, those of its DINOv2 and DINOv3, facebookresearch's of LayerScale, and those of
# timm's DINOv3. # stands for the block's index.
_ALIASES = {
    "cls_token": ("embeddings.cls_token",),
    "dist_token": ("embeddings.distillation_token",),
    "pos_embed": ("embeddings.position_embeddings",),
    "reg_token": ("embeddings.register_tokens",),
    "patch_embed.proj": ("embeddings.patch_embeddings.projection", "embeddings.patch_embeddings"),
    "blocks.#.norm1": (
        "encoder.layer.#.layernorm_before",
        "layers.#.layernorm_before",
        "encoder.layer.#.norm1",
        "layer.#.norm1",
    ),
    "blocks.#.attn.query": (
        "encoder.layer.#.attention.attention.query",
        "layers.#.attention.q_proj",
        "encoder.layer.#.attention.q_proj",
        "layer.#.attention.q_proj",
    ),
    "blocks.#.attn.key": (
        "encoder.layer.#.attention.attention.key",
        "layers.#.attention.k_proj",
        "encoder.layer.#.attention.k_proj",
        "layer.#.attention.k_proj",
    ),
    "blocks.#.attn.value": (
        "encoder.layer.#.attention.attention.value",
        "layers.#.attention.v_proj",
        "encoder.layer.#.attention.v_proj",
        "layer.#.attention.v_proj",
    ),
    "blocks.#.attn.proj": (
        "encoder.layer.#.attention.output.dense",
        "layers.#.attention.o_proj",
        "encoder.layer.#.attention.o_proj",
        "layer.#.attention.o_proj",
    ),
    "blocks.#.norm2": (
        "encoder.layer.#.layernorm_after",
        "layers.#.layernorm_after",
        "encoder.layer.#.norm2",
        "layer.#.norm2",
    ),
    "blocks.#.mlp.fc1": (
        "encoder.layer.#.intermediate.dense",
        "layers.#.mlp.fc1",
        "encoder.layer.#.mlp.fc1",
        "encoder.layer.#.mlp.weights_in",
    ),
    "blocks.#.mlp.gate": (
        "blocks.#.mlp.fc1_g",
        "layer.#.mlp.gate_proj",
        "encoder.layer.#.mlp.gate_proj",
    ),
    "blocks.#.mlp.value": (
        "blocks.#.mlp.fc1_x",
        "layer.#.mlp.up_proj",
        "encoder.layer.#.mlp.up_proj",
    ),
    "blocks.#.mlp.fc2": (
        "encoder.layer.#.output.dense",
        "layers.#.mlp.fc2",
        "encoder.layer.#.mlp.fc2",
        "encoder.layer.#.mlp.weights_out",
        "encoder.layer.#.mlp.down_proj",
        "layer.#.mlp.down_proj",
    ),
    "blocks.#.attn.query.bias": ("blocks.#.attn.q_bias",),
    "blocks.#.attn.value.bias": ("blocks.#.attn.v_bias",),
    "blocks.#.ls1.gamma": (
        "blocks.#.gamma_1",
        "encoder.layer.#.layer_scale1.lambda1",
        "layer.#.layer_scale1.lambda1",
    ),
    "blocks.#.ls2.gamma": (
        "blocks.#.gamma_2",
        "encoder.layer.#.layer_scale2.lambda1",
        "layer.#.layer_scale2.lambda1",
    ),
    "norm": ("layernorm",),
    "head": ("classifier", "cls_classifier"),
    "head_dist": ("distillation_classifier",),
    "pooler.dense": ("pooler.dense",),
}
_TIMM = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}


def _to_timm_name(name):
    module, index, suffix = _split(re.sub(f"^{_BASE}", "", name))
    return f"{_TIMM[module].replace('#', index)}{suffix}" if module in _TIMM else name


def _to_transformers_name(name, base, two_heads):
    module, index, suffix = _split(name)
    if module == "head" and two_heads:
        return f"cls_classifier{suffix}"
    alias = _ALIASES[module][0].replace("#", index)
    return f"{alias}{suffix}" if module.startswith("head") else f"{base}{alias}{suffix}"


def _split(name):
    """("blocks.#.mlp.fc1", "7", ".weight") of "blocks.7.mlp.fc1.weight"."""
    module, suffix = re.fullmatch(r"(.*?)(\.weight|\.bias)?", name).groups(default="")
    index = re.search(r"(?<=\.)\d+(?=\.)", module)
    return (
        (module, "", suffix)
        if index is None
        else (re.sub(r"(?<=\.)\d+(?=\.)", "#", module, count=1), index[0], suffix)
    )


def _unchanged(name, shape, path):
    return Rule((name,), (shape,), path, lambda tensor: tensor, lambda array: [array])


def _norm(name, dim, path):
    return [
        _unchanged(f"{name}.weight", (dim,), f"{path}/gamma"),
        _unchanged(f"{name}.bias", (dim,), f"{path}/beta"),
    ]


def _dense(name, shape, path):
    kernel = Rule(
        (f"{name}.weight",),
        (shape,),
        f"{path}/kernel",
        lambda weight: weight.T,
        lambda kernel: [kernel.T],
    )
    return [kernel, _unchanged(f"{name}.bias", shape[:1], f"{path}/bias")]
