"""What the arguments of a backbone mean together."""

import numpy as np

from keras_deit.arguments import (
    check_bool,
    check_choice,
    check_non_negative_int,
    check_positive_int,
    check_rate,
)

POSITION_SCOPES = ("all", "patches", "rotary")
DROP_PATH_SCHEDULES = ("linear", "constant")


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


def merging_arguments(
    num_merged_tokens, num_prefix_tokens, position_scope, patch_dropout_rate, image_shape
):
    """What `MergingTransformerBlock` needs beyond `TransformerBlock`; empty without merging."""
    check_choice("position_scope", position_scope, POSITION_SCOPES)
    patch_dropout_rate = check_rate("patch_dropout_rate", patch_dropout_rate)
    num_merged_tokens = check_non_negative_int("num_merged_tokens", num_merged_tokens)
    # A rotation belongs to the place of its token.
    for name, value in (
        ("num_merged_tokens", num_merged_tokens),
        ("patch_dropout_rate", patch_dropout_rate),
    ):
        if position_scope == "rotary" and value:
            raise ValueError(
                f'`position_scope="rotary"` needs every patch in its place. Use `{name}=0`. '
                f"Received: position_scope='rotary', {name}={value!r}"
            )
    if not num_merged_tokens:
        return {}
    if None in image_shape:
        raise ValueError(
            "Tokens are merged only where their number is known. Use an `image_shape` without "
            "`None`, or `num_merged_tokens=0`. "
            f"Received: image_shape={image_shape}, num_merged_tokens={num_merged_tokens!r}"
        )
    if patch_dropout_rate:
        raise ValueError(
            "Tokens are merged only where their number is known, and patch dropout changes it in "
            "training. Use one of the two. Received: "
            f"num_merged_tokens={num_merged_tokens!r}, patch_dropout_rate={patch_dropout_rate!r}"
        )
    return {"num_merged_tokens": num_merged_tokens, "num_prefix_tokens": num_prefix_tokens}
