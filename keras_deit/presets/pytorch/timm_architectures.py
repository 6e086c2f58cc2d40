"""timm's names of plain vision transformers, translated to arguments of our models.

timm's config.json has a name and what differs from it, but no sizes. A name gives the arguments of
timm's constructor: first those of the size, then those of each part of the name, such as `reg4` or
`siglip`. They are translated together with the `model_args` of the file. Source: timm 1.0.31,
vision_transformer.py, deit.py and eva.py (DINOv3).
"""

import re

from keras_deit.presets import kinds
from keras_deit.presets.catalog import ARCHITECTURES, SIZES
from keras_deit.presets.pytorch.activations import GELU_TANH, QUICK_GELU

# depth, num_heads, embed_dim, mlp_ratio
_SIZES = {
    **{size: (*values, 4) for size, values in SIZES.items()},
    "xsmall": (10, 4, 256, 4),
    "wee": (14, 4, 256, 5),
    "little": (14, 5, 320, 5.6),
    "mediumd": (20, 8, 512, 4),
    "betwixt": (12, 10, 640, 4),
    "so150m": (18, 14, 896, 2.572),
    "so150m2": (21, 13, 832, 34 / 13),
    "intern300m": (24, 16, 1024, 4),
    "so400m": (27, 16, 1152, 3.7362),
    "giant": (40, 16, 1408, 48 / 11),
    "giantopt": (40, 16, 1536, 4),
    "gigantic": (48, 16, 1664, 64 / 13),
}
_PLAIN = re.compile(
    rf"vit_(?P<size>{'|'.join(_SIZES)})_patch(?P<patch>8|14|16|32)"
    r"(_plus|_36x1|(_reg[14])?(_gap|_map)?|(_reg[14])?_(dinov2|tipsv2)"
    r"|_siglip(_gap)?|(_plus)?_clip(_quickgelu)?)(_\d{3})?(_miil)?"
)
_DINOV3 = re.compile(r"vit_(small|base|large|huge|7b)(_plus)?_patch16_dinov3(_qkvb)?")
# Parts of a name and the arguments that they stand for, in the order in which they apply
_PARTS = (
    (r"_plus_", {"embed_dim": 896, "num_heads": 14, "init_values": 1e-5}),
    (r"_36x1_", {"depth": 36, "init_values": 1e-5}),
    (r"_miil", {"qkv_bias": False}),
    (r"_dinov2", {"init_values": 1e-5}),
    (r"_tipsv2", {"init_values": 1.0}),
    (
        r"_giant_patch14_.*(dinov2|tipsv2)",
        {"embed_dim": 1536, "num_heads": 24, "mlp_ratio": 16 / 3, "mlp_layer": "swiglu"},
    ),
    (r"_reg1_", {"reg_tokens": 1, "no_embed_class": True}),
    (r"_reg4_", {"reg_tokens": 4, "no_embed_class": True}),
    (r"_(wee|little|mediumd?|betwixt|so150m2)_.*_reg", {"init_values": 1e-5}),
    (r"_gap_", {"class_token": False, "global_pool": "avg"}),
    (r"_map_", {"class_token": False, "global_pool": "map"}),
    (r"_patch\d+_gap_", {"fc_norm": False}),
    (r"_(medium|betwixt)_patch16_gap_", {"qkv_bias": False, "init_values": 1e-6}),
    (r"_base_patch16_gap_", {"num_heads": 16}),
    (r"_so150m2?_", {"no_embed_class": False}),
    (r"_so150m_.*_gap_", {"fc_norm": False}),
    (r"_so150m2_", {"qkv_bias": False}),
    (r"_intern300m_", {"init_values": 0.1, "final_norm": False}),
    (r"_siglip_", {"class_token": False, "global_pool": "map"}),
    (r"_siglip_gap_", {"global_pool": "avg", "fc_norm": False}),
    (
        r"_(base_patch32|so400m_patch16|giantopt_patch16)_siglip_|_large_.*_siglip_.*512",
        {"act_layer": "gelu_tanh"},
    ),
    (r"_clip_", {"pre_norm": True, "norm_eps": 1e-5, "init_values": None}),
    (r"_quickgelu_", {"act_layer": "quick_gelu"}),
)
PATTERNS = (
    "vit_{size}_patch{8,14,16,32}_{pixels} with the parts plus, reg, gap, map, dinov2, tipsv2, "
    "siglip, clip and quickgelu",
    "flexivit_{small,base,large}",
    "vit_{size}_patch16_dinov3",
    "eva_large_patch14_{pixels}",
    "deit_*",
    "deit3_*",
)

# Arguments of timm's constructors that change the architecture
ARGUMENTS = {
    "patch_size": kinds.SIZE,
    "embed_dim": kinds.WIDTH,
    "depth": kinds.LAYERS,
    "num_heads": kinds.WIDTH,
    "mlp_ratio": kinds.number(0.01, 100),
    "init_values": kinds.or_null(kinds.NUMBER),
    "class_token": kinds.SWITCH,
    "no_embed_class": kinds.SWITCH,
    "reg_tokens": kinds.whole(0, 2**12),
    "qkv_bias": kinds.SWITCH,
    "qk_norm": kinds.SWITCH,
    "pre_norm": kinds.SWITCH,
    "final_norm": kinds.SWITCH,
    "fc_norm": kinds.or_null(kinds.SWITCH),
    "act_layer": kinds.one_of("gelu", "gelu_tanh", "quick_gelu", "silu", "swish", "relu"),
    "attn_drop_rate": kinds.RATE,
    "drop_path_rate": kinds.RATE,
}
_ACTIVATIONS = {"gelu_tanh": GELU_TANH, "quick_gelu": QUICK_GELU, "swish": "silu"}
_RENAMED = {
    "patch_size": "patch_size",
    "depth": "num_layers",
    "num_heads": "num_heads",
    "embed_dim": "hidden_dim",
    "init_values": "layer_scale_init_value",
    "class_token": "use_class_token",
    "reg_tokens": "num_register_tokens",
    "qk_norm": "use_qk_norm",
    "pre_norm": "use_pre_norm",
    "norm_eps": "layer_norm_epsilon",
    "attn_drop_rate": "attention_dropout_rate",
    "drop_path_rate": "drop_path_rate",
}
_POOLINGS = {"token": "token", "avg": "mean", "map": "map"}


def named_arguments(name):
    """`(backbone, arguments)` of a name: arguments of our `DeiTBackbone` where the catalog has
    them, and those of timm's constructor. `None` if the name is none of a plain transformer.
    """
    if name in ARCHITECTURES and not ARCHITECTURES[name].in21k:
        return ARCHITECTURES[name].backbone_config, {}
    plain, flexi = _PLAIN.fullmatch(name), re.fullmatch(r"flexivit_(small|base|large)", name)
    dinov3 = _DINOV3.fullmatch(name)
    if dinov3:
        return {"data_format": "channels_last"}, _dinov3_arguments(*dinov3.groups())
    if plain:
        size, patch_size = plain["size"], int(plain["patch"])
    elif flexi:
        size, patch_size = flexi[1], 16
    elif re.fullmatch(r"eva_large_patch14_\d{3}", name):
        size, patch_size = "large", 14
    else:
        return None
    depth, num_heads, embed_dim, mlp_ratio = _SIZES[size]
    arguments = {
        "patch_size": patch_size,
        "depth": depth,
        "num_heads": num_heads,
        "embed_dim": embed_dim,
        "mlp_ratio": mlp_ratio,
    }
    if flexi:
        arguments["no_embed_class"] = True
    if name.startswith("eva"):
        arguments["global_pool"] = "avg"
    for pattern, part in _PARTS:
        if re.search(pattern, f"{name}_"):
            arguments.update(part)
    return {"data_format": "channels_last"}, arguments


def _dinov3_arguments(size, plus, qkvb):
    depth, num_heads, embed_dim, mlp_ratio = (
        (40, 32, 4096, 4) if size == "7b" else (*SIZES[size], 8 if plus else 4)
    )
    return {
        "patch_size": 16,
        "depth": depth,
        "num_heads": 20 if size == "huge" else num_heads,
        "embed_dim": embed_dim,
        "mlp_ratio": mlp_ratio,
        **({"mlp_layer": "swiglu"} if plus or size == "7b" else {}),
        "use_rot_pos_emb": True,
        "reg_tokens": 4,
        "init_values": 1e-5,
        "norm_eps": 1e-5,
        # With "_qkvb", queries and values have biases, and keys do not.
        "qkv_bias": bool(qkvb),
        "global_pool": "avg",
        "fc_norm": False,
    }


def translated(backbone, arguments):
    """The arguments of a `DeiTBackbone` and of a `DeiTImageClassifier`.

    Args:
        backbone: dict, arguments of the `DeiTBackbone` to begin with.
        arguments: dict, arguments of timm's constructor.
    """
    backbone = {
        **backbone,
        **{_RENAMED[name]: value for name, value in arguments.items() if name in _RENAMED},
    }
    if "embed_dim" in arguments or "mlp_ratio" in arguments:
        width = backbone["hidden_dim"] * arguments.get("mlp_ratio", 4)
        backbone["intermediate_dim"] = int(width + 1e-6)
    if arguments.get("mlp_layer") == "swiglu":
        # timm counts gate and hidden layer together.
        backbone["intermediate_dim"] //= 2
        backbone["use_gated_mlp"] = True
        arguments = {"act_layer": "silu", **arguments}
    if "act_layer" in arguments:
        name = arguments["act_layer"]
        backbone["activation"] = _ACTIVATIONS.get(name, name)
    if not backbone.get("layer_scale_init_value"):
        backbone["layer_scale_init_value"] = None  # 0 is no LayerScale in timm
    if "no_embed_class" in arguments:
        backbone["position_scope"] = "patches" if arguments["no_embed_class"] else "all"
    if arguments.get("use_rot_pos_emb"):
        backbone["position_scope"] = "rotary"
    pooling = arguments.get("global_pool", "token")
    norm_after_pooling = arguments.get("fc_norm")
    if norm_after_pooling is None:
        norm_after_pooling = pooling == "avg"
    final_norm = arguments.get("final_norm", True)
    backbone["use_final_norm"] = final_norm and not norm_after_pooling
    classifier = {"pooling": _POOLINGS[pooling], "use_head_norm": final_norm and norm_after_pooling}
    return backbone, classifier


def tensors_of_zeros(arguments):
    """Names of the tensors that timm's model lacks and that are zeros in ours: regular expression,
    or `None`.
    """
    missing = []
    if arguments.get("use_rot_pos_emb"):
        missing.append(r"blocks\.\d+\.attn\.key\.bias")
    if not arguments.get("qkv_bias", True):
        missing.append(r"blocks\.\d+\.attn\.qkv\.bias")
    if arguments.get("pre_norm"):
        missing.append(r"patch_embed\.proj\.bias")
    return "|".join(missing) or None
