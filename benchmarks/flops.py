"""Floating-point operations of a model's matrix products: two per multiplication and addition."""

import math


def forward_flops(config, num_classes=0, num_heads_of_classifier=1):
    """FLOPs of the forward pass of one image.

    By convention, only matrix products count, not norms, softmax or GELU. All tokens of all blocks
    count, also those of the last block that a classifier need not compute.

    Args:
        config: dict, the arguments of a `DeiTBackbone` in channels_last.
        num_classes: int, or 0 for a backbone alone.
        num_heads_of_classifier: int, 2 for a distilled model.
    """
    *image_size, channels = config["image_shape"]
    patch_size = config["patch_size"]
    patch_size = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    patches = math.prod(size // side for size, side in zip(image_size, patch_size))
    prefix = (
        config.get("use_class_token", True)
        + config["use_distillation_token"]
        + config.get("num_register_tokens", 0)
    )
    dim, intermediate_dim = config["hidden_dim"], config["intermediate_dim"]
    products_of_mlp = 3 if config.get("use_gated_mlp") else 2
    multiplications = (
        patches * math.prod(patch_size) * channels * dim
        + num_heads_of_classifier * dim * num_classes
    )
    tokens = prefix + patches
    num_layers, keep_rate = config["num_layers"], config.get("keep_rate", 1.0)
    selecting = {num_layers * quarter // 4 for quarter in (1, 2, 3)}
    for index in range(num_layers):
        # query, key, value and projection; scores and weighted sum
        multiplications += 4 * tokens * dim * dim + 2 * tokens * tokens * dim
        tokens -= min(config.get("num_merged_tokens", 0), (tokens - prefix) // 2)
        if index in selecting:
            # The kept tokens and the fused one, which replaces one at least.
            tokens = min(tokens, prefix + math.ceil(keep_rate * (tokens - prefix)) + 1)
        multiplications += products_of_mlp * tokens * dim * intermediate_dim
    return 2 * multiplications


def training_flops(*args, **kwargs):
    """FLOPs of the training step of one image.

    The backward pass has two products for each one of the forward pass.
    """
    return 3 * forward_flops(*args, **kwargs)
