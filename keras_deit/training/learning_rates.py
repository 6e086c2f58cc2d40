"""Which share of the learning rate each variable of a model gets.

The rule reads the paths of variables, which contain the names of layers. So it works for
classifiers, distillers, backbones inside other models, and models composed of the same names.
"""

import re

_BLOCK = re.compile(r"(?:.*/)?block_(\d+)/.*")
_HEAD = re.compile(r"(?:.*/)?head/.*")
_LAST_NORM = re.compile(r"(?:.*/)?final_norm/.*")
_STEM = re.compile(
    r"(?:.*/)?(?:patch_embedding|hmlp_stem|token_position_embedding|pre_norm)(?:_\d+)?/.*"
)


def learning_rate_factor(path, layer_decay, num_layers, head_factor):
    """The factor of the variable with this path.

    Args:
        path: string, such as `"block_3/mlp/intermediate/kernel"`.
        layer_decay: float in (0, 1], the factor from one block to the block before it.
        num_layers: int, the number of blocks.
        head_factor: float, a further factor of the layer `head`.
    """
    factor = layer_decay ** (num_layers + 1 - _depth(path, num_layers))
    return factor * head_factor if _HEAD.fullmatch(path) else factor


def _depth(path, num_layers):
    """0 for the embedding, 1 for the first block, `num_layers + 1` for all after the backbone.

    timm's `group_matcher` counts in the same way: the last norm belongs to the last block, and what
    has no other place, such as a pooling, to the head.
    """
    block = _BLOCK.fullmatch(path)
    if block:
        return int(block[1]) + 1
    if _LAST_NORM.fullmatch(path):
        return num_layers
    return 0 if _STEM.fullmatch(path) else num_layers + 1


def count_blocks(variables):
    """The number of blocks."""
    blocks = [_BLOCK.fullmatch(variable.path) for variable in variables]
    return max((int(block[1]) + 1 for block in blocks if block), default=0)


def check_has_head(variables):
    if not any(_HEAD.fullmatch(variable.path) for variable in variables):
        raise ValueError(
            "This recipe has a separate learning rate for the head, but the model has no trainable "
            "layer named `head`. Rename your layer, or use "
            "`dataclasses.replace(recipe, head_learning_rate_factor=1.0)`. Received: a model whose "
            f"last trainable variables are {_last(variables)}"
        )


def check_has_blocks(variables):
    if not count_blocks(variables):
        raise ValueError(
            "This recipe has a learning rate for each block, but the model has no trainable layer "
            "named `block_0`, `block_1` or so on. Rename your layers, or use "
            "`dataclasses.replace(recipe, layer_decay=None)`. Received: a model whose last "
            f"trainable variables are {_last(variables)}"
        )


def _last(variables):
    return ", ".join(variable.path for variable in variables[-3:]) or "none"
