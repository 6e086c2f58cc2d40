"""What the arguments of a backbone mean together."""

import numpy as np

from keras_deit.arguments import (
    check_bool,
    check_choice,
    check_keep_rate,
    check_non_negative_int,
    check_positive_int,
    check_rate,
)
from keras_deit.layers.merging_transformer_block import MergingTransformerBlock
from keras_deit.layers.selecting_transformer_block import SelectingTransformerBlock
from keras_deit.layers.transformer_block import TransformerBlock

POSITION_SCOPES = ("all", "patches", "rotary")
DROP_PATH_SCHEDULES = ("linear", "constant")
# The arguments that remove patches, and the values that do not
KEEPING_ALL = {"num_merged_tokens": 0, "keep_rate": 1.0, "patch_dropout_rate": 0}


def drop_path_rates(num_layers, drop_path_rate, drop_path_schedule):
    """The rate of each block."""
    num_layers = check_positive_int("num_layers", num_layers)
    drop_path_rate = check_rate("drop_path_rate", drop_path_rate)
    check_choice("drop_path_schedule", drop_path_schedule, DROP_PATH_SCHEDULES)
    first = 0.0 if drop_path_schedule == "linear" else drop_path_rate
    return np.linspace(first, drop_path_rate, num_layers).tolist()


def prefix_tokens(use_class_token, use_distillation_token, num_register_tokens):
    """How many tokens precede the patches."""
    use_class_token = check_bool("use_class_token", use_class_token)
    use_distillation_token = check_bool("use_distillation_token", use_distillation_token)
    if use_distillation_token and not use_class_token:
        raise ValueError(
            "A distillation token needs a class token beside it. Use `use_class_token=True`, or "
            "`use_distillation_token=False`. Received: use_class_token=False, "
            "use_distillation_token=True"
        )
    registers = check_non_negative_int("num_register_tokens", num_register_tokens)
    return use_class_token + use_distillation_token + registers


def block_kinds(
    num_layers,
    num_merged_tokens,
    keep_rate,
    num_prefix_tokens,
    use_class_token,
    position_scope,
    patch_dropout_rate,
    image_shape,
):
    """For each block, its class and what that class takes beyond `TransformerBlock`."""
    check_choice("position_scope", position_scope, POSITION_SCOPES)
    patch_dropout_rate = check_rate("patch_dropout_rate", patch_dropout_rate)
    num_merged_tokens = check_non_negative_int("num_merged_tokens", num_merged_tokens)
    keep_rate = check_keep_rate("keep_rate", keep_rate)
    values = {
        "num_merged_tokens": num_merged_tokens,
        "keep_rate": keep_rate,
        "patch_dropout_rate": patch_dropout_rate,
    }
    removing = {name: value for name, value in values.items() if value != KEEPING_ALL[name]}
    # A rotation belongs to the place of its token.
    for name, value in removing.items():
        if position_scope == "rotary":
            raise ValueError(
                '`position_scope="rotary"` needs every patch in its place. Use '
                f"`{name}={KEEPING_ALL[name]}`. "
                f"Received: position_scope='rotary', {name}={value!r}"
            )
    if num_merged_tokens and "keep_rate" in removing:
        raise ValueError(
            "Tokens are either merged or selected. Use `num_merged_tokens=0` or `keep_rate=1.0`. "
            f"Received: num_merged_tokens={num_merged_tokens!r}, keep_rate={keep_rate!r}"
        )
    if "keep_rate" in removing and not use_class_token:
        raise ValueError(
            "Tokens are selected by the attention of the class token. Use `use_class_token=True` "
            f"or `keep_rate=1.0`. Received: use_class_token=False, keep_rate={keep_rate!r}"
        )
    for verb, name in (("merged", "num_merged_tokens"), ("selected", "keep_rate")):
        if name not in removing:
            continue
        value, off = removing[name], KEEPING_ALL[name]
        if None in image_shape:
            raise ValueError(
                f"Tokens are {verb} only where their number is known. Use an `image_shape` without "
                f"`None`, or `{name}={off}`. "
                f"Received: image_shape={image_shape}, {name}={value!r}"
            )
        if patch_dropout_rate:
            raise ValueError(
                f"Tokens are {verb} only where their number is known, and patch dropout changes it "
                "in training. Use one of the two. Received: "
                f"{name}={value!r}, patch_dropout_rate={patch_dropout_rate!r}"
            )
    plain = (TransformerBlock, {})
    if num_merged_tokens:
        merging = {"num_merged_tokens": num_merged_tokens, "num_prefix_tokens": num_prefix_tokens}
        return [(MergingTransformerBlock, merging)] * num_layers
    if "keep_rate" not in removing:
        return [plain] * num_layers
    selecting = {"keep_rate": keep_rate, "num_prefix_tokens": num_prefix_tokens}
    # Blocks 3, 6 and 9 of 12, as published
    places = {num_layers * quarter // 4 for quarter in (1, 2, 3)}
    return [
        (SelectingTransformerBlock, selecting) if index in places else plain
        for index in range(num_layers)
    ]
