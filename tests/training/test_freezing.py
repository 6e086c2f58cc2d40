"""Which variables train: first blocks frozen, or attention, biases or the head alone."""

import pytest

from keras_deit.models import DeiTDistiller
from keras_deit.training import freeze_blocks, train_only
from tests.helpers import raises, tiny_backbone, tiny_classifier

ALL_PARTS = {"layer_scale_init_value": 0.1, "use_qk_norm": True, "use_pre_norm": True}
BLOCKS = range(3)
HEAD = {f"head/{token}_head/{n}" for token in ("class", "distillation") for n in ("kernel", "bias")}
LAYERS = ("attention/qkv", "attention/projection", "mlp/intermediate", "mlp/projection")


def trained(model):
    return {variable.path for variable in model.trainable_variables}


def in_blocks(names, blocks=BLOCKS):
    return {f"block_{index}/{name}" for name in names for index in blocks}


EXPECTED = {
    # As `--attn-only` of facebookresearch/deit: what has ".attn." in its name, positions, the head
    "attention": {
        *in_blocks(f"{layer}/{n}" for layer in LAYERS[:2] for n in ("kernel", "bias")),
        *in_blocks(
            f"attention/{of}_norm/{n}" for of in ("query", "key") for n in ("gamma", "beta")
        ),
        "token_position_embedding/positions",
    },
    "bias": {
        *in_blocks(f"{layer}/bias" for layer in LAYERS),
        *in_blocks(
            f"{norm}/beta"
            for norm in ("attention_norm", "mlp_norm", "attention/query_norm", "attention/key_norm")
        ),
        "patch_embedding/projection/bias",
        "pre_norm/beta",
        "final_norm/beta",
    },
    "head": set(),
}


@pytest.mark.parametrize("part", EXPECTED)
def test_what_trains(part):
    model = tiny_classifier(ALL_PARTS)
    everything = trained(model)
    train_only(model, part)
    assert trained(model) == EXPECTED[part] | HEAD
    train_only(model, "all")
    assert trained(model) == everything


def test_without_positions_attention_trains():
    backbone = tiny_backbone(position_scope="rotary", num_layers=1)
    train_only(backbone, "attention")
    assert trained(backbone) == in_blocks(
        (f"{layer}/{n}" for layer in LAYERS[:2] for n in ("kernel", "bias")), [0]
    )


@pytest.mark.parametrize("part", ["all", "bias"])
def test_first_blocks_are_frozen(part):
    """And what precedes them."""
    distiller = DeiTDistiller(tiny_classifier(ALL_PARTS), None)
    train_only(distiller, part)
    before = trained(distiller)
    freeze_blocks(distiller, 2)
    kept = {path for path in before if path.startswith(("block_2", "final_norm", "head"))}
    assert trained(distiller) == kept and len(kept) < len(before)


def test_errors():
    backbone = tiny_backbone(num_layers=2)
    with raises("`num_blocks` must be at most the number of blocks, 2. Received: num_blocks=3"):
        freeze_blocks(backbone, 3)
    with raises("`num_blocks` must be a positive integer. Received: num_blocks=0"):
        freeze_blocks(backbone, 0)
    with raises(
        "`part` must be one of 'all', 'attention', 'bias', 'head'. Received: part='biases'"
    ):
        train_only(backbone, "biases")
    with raises(
        "`model` must be a `DeiTBackbone`, or have one as its `backbone`. For a model of your own, "
        "set `trainable = False` on its layers. Received: model=None"
    ):
        train_only(None, "head")
    with_adapters = tiny_backbone(num_layers=1)
    with_adapters.enable_lora(2)
    with raises(
        "LoRA is enabled, so its adapters train, and the head. Call `train_only` on a model without "
        "LoRA, such as `merge_lora()` returns. Received: part='bias'"
    ):
        train_only(with_adapters, "bias")
    assert backbone.trainable_variables == backbone.weights
