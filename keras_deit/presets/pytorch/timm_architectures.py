"""timm's names of plain vision transformers, translated to arguments of `DeiTBackbone`.

timm's config.json has the name and what differs from it, but no sizes. Names follow a pattern:
`vit_{size}_patch{patch}_{pixels}` (AugReg, DINO and MAE weights), `vit_{size}_patch{patch}_dinov2`,
`flexivit_{size}`, and the names of DeiT. Source: timm 1.0.31, vision_transformer.py and deit.py.
"""

import re

from keras_deit.presets import kinds
from keras_deit.presets.catalog import ARCHITECTURES, SIZES

_PLAIN = re.compile(r"vit_(tiny|small|base|large|huge)_patch(\d{1,2})(_dinov2)?(?:_\d{2,4})?")
_FLEXI = re.compile(r"flexivit_(small|base|large)()()")
PATTERNS = (
    "vit_{tiny,small,base,large,huge}_patch{8,14,16,32}_{pixels}",
    "vit_{small,base,large}_patch14_dinov2",
    "flexivit_{small,base,large}",
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
    "init_values": kinds.NUMBER,
    "no_embed_class": kinds.SWITCH,
    "attn_drop_rate": kinds.RATE,
    "drop_path_rate": kinds.RATE,
}


def architecture(name):
    """The arguments of a `DeiTBackbone`, or `None` if the name is none of a plain transformer."""
    if name in ARCHITECTURES and not ARCHITECTURES[name].in21k:
        return ARCHITECTURES[name].backbone_config
    match = _PLAIN.fullmatch(name) or _FLEXI.fullmatch(name)
    if match is None:
        return None
    size, patch_size, is_dinov2 = match.groups()
    num_layers, num_heads, hidden_dim = SIZES[size]
    return {
        "patch_size": int(patch_size or 16),
        "num_layers": num_layers,
        "num_heads": num_heads,
        "hidden_dim": hidden_dim,
        "intermediate_dim": 4 * hidden_dim,
        "position_scope": "all" if patch_size else "patches",
        "layer_scale_init_value": 1e-5 if is_dinov2 else None,
        "data_format": "channels_last",
    }


def with_arguments(config, arguments):
    """The arguments of a `DeiTBackbone`, changed by those of timm's constructor."""
    config = dict(config)
    for timm_name, name in (
        ("patch_size", "patch_size"),
        ("depth", "num_layers"),
        ("num_heads", "num_heads"),
        ("embed_dim", "hidden_dim"),
        ("init_values", "layer_scale_init_value"),
        ("attn_drop_rate", "attention_dropout_rate"),
        ("drop_path_rate", "drop_path_rate"),
    ):
        if timm_name in arguments:
            config[name] = arguments[timm_name]
    if "embed_dim" in arguments or "mlp_ratio" in arguments:
        config["intermediate_dim"] = int(config["hidden_dim"] * arguments.get("mlp_ratio", 4))
    if "no_embed_class" in arguments:
        config["position_scope"] = "patches" if arguments["no_embed_class"] else "all"
    return config
