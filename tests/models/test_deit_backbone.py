import inspect
import json

import keras
import numpy as np
import pytest

from keras_deit.layers import kernels
from keras_deit.models import DeiTBackbone
from keras_deit.visualization import attention_model
from tests import witness
from tests.conftest import BACKEND
from tests.helpers import images, numpy, raises, randomize, tiny_backbone, tiny_classifier

pytestmark = pytest.mark.backend

DEIT3 = {
    "position_scope": "patches",
    "layer_scale_init_value": 0.1,
    "drop_path_schedule": "constant",
}
# As in DINOv3's largest model
ROTARY = {
    "position_scope": "rotary",
    "num_register_tokens": 3,
    "layer_scale_init_value": 0.1,
    "activation": "silu",
    "use_gated_mlp": True,
    "use_qk_norm": True,
}
# As in SigLIP, but without its norm
WITHOUT_PREFIX = {"use_class_token": False, "use_final_norm": False}
CLIP = {"use_pre_norm": True, "layer_norm_epsilon": 1e-5}
VARIANTS = {
    "plain": {},
    "distilled": {"use_distillation_token": True},
    "deit3": DEIT3,
    "registers": {"use_distillation_token": True, "num_register_tokens": 2},
    "rotary": ROTARY,
    "without prefix": WITHOUT_PREFIX,
    "clip": CLIP,
}


@pytest.fixture(params=VARIANTS)
def backbone(request, rng):
    return randomize(tiny_backbone(**VARIANTS[request.param]), rng)


def test_agrees_with_the_witness_at_every_depth(backbone, rng):
    x = images(rng)
    model = keras.Model(
        backbone.input,
        {
            "output": backbone.output,
            "block_outputs": backbone.block_outputs,
            "attention_scores": backbone.attention_scores,
        },
    )
    expected = witness.backbone(
        x.astype("float64"), witness.weights_of(backbone), backbone.get_config()
    )
    found = model(x)
    for block in ("block_0", "block_1", "block_2"):
        np.testing.assert_allclose(
            numpy(found["block_outputs"][block]),
            expected["block_outputs"][block],
            rtol=1e-5,
            atol=1e-5,
        )
        scores = numpy(found["attention_scores"][block])
        np.testing.assert_allclose(scores, expected["attention_scores"][block], atol=1e-5)
        assert scores.shape == (
            4,
            2,
            backbone.num_prefix_tokens + 12,
            backbone.num_prefix_tokens + 12,
        )
    np.testing.assert_allclose(numpy(found["output"]), expected["output"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(numpy(backbone(x)), numpy(found["output"]))


def test_channels_first_is_channels_last_transposed_and_survives_a_round_trip(rng, tmp_path):
    last = randomize(tiny_backbone(), rng)
    first = tiny_backbone(image_shape=(3, 12, 32), data_format="channels_first")
    first.set_weights(last.get_weights())
    x = images(rng)
    np.testing.assert_array_equal(numpy(first(x.transpose(0, 3, 1, 2))), numpy(last(x)))
    [feature_map] = first.pyramid_outputs.values()
    assert feature_map.shape == (None, 8, 3, 4)
    twin = DeiTBackbone.from_config(json.loads(json.dumps(first.get_config())))
    assert twin.data_format == "channels_first"
    assert twin.input_shape == (None, 3, 12, 32)
    first.save(tmp_path / "first.keras")
    loaded = keras.saving.load_model(tmp_path / "first.keras")
    np.testing.assert_array_equal(numpy(loaded(x.transpose(0, 3, 1, 2))), numpy(last(x)))


def test_config_is_the_arguments_and_comes_back(backbone):
    config = backbone.get_config()
    assert set(config) == set(inspect.signature(DeiTBackbone.__init__).parameters) - {"self"}
    config = json.loads(json.dumps(config))
    twin = DeiTBackbone.from_config(config)
    assert json.loads(json.dumps(twin.get_config())) == config
    assert [v.path for v in twin.weights] == [v.path for v in backbone.weights]


def test_paths_of_variables_are_the_names_of_attributes():
    paths = [v.path for v in tiny_backbone(use_distillation_token=True).weights]
    assert paths[:4] == [
        "patch_embedding/projection/kernel",
        "patch_embedding/projection/bias",
        "token_position_embedding/prefix_tokens",
        "token_position_embedding/positions",
    ]
    assert "block_2/attention/qkv/kernel" in paths
    assert paths[-1] == "final_norm/beta"


@pytest.mark.parametrize(
    ("schedule", "expected"), [("linear", [0.0, 0.15, 0.3]), ("constant", [0.3, 0.3, 0.3])]
)
def test_drop_path_schedule(schedule, expected):
    backbone = tiny_backbone(drop_path_rate=0.3, drop_path_schedule=schedule)
    assert [block.drop_path_rate for block in backbone.blocks] == pytest.approx(expected)


RATES = ["dropout_rate", "attention_dropout_rate", "drop_path_rate", "patch_dropout_rate"]


@pytest.mark.parametrize("rate", RATES)
def test_every_rate_acts_in_training_alone(rate, rng):
    backbone = randomize(tiny_backbone(**{rate: 0.5}), rng)
    x = images(rng)
    inference = numpy(backbone(x))
    np.testing.assert_array_equal(inference, numpy(backbone(x, training=False)))
    assert not np.array_equal(inference, numpy(backbone(x, training=True)))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_dtype_reaches_every_layer(policy):
    backbone = tiny_backbone(dtype=policy)
    assert backbone.dtype_policy.name == policy
    assert {layer.dtype_policy.name for layer in backbone.layers[1:]} == {policy}
    assert backbone.compute_dtype == backbone.output.dtype == policy.removeprefix("mixed_")


def test_summary_opens_up(capsys):
    tiny_backbone().summary(expand_nested=True)
    printed = capsys.readouterr().out
    for name in ("patch_embedding", "token_position_embedding", "block_0", "block_2", "final_norm"):
        assert name in printed


def calls_in(model, layer):
    """How often a functional model calls a layer, as `plot_model` draws it."""
    config = keras.Model(model.input, model.output).get_config()
    return {each["name"]: len(each["inbound_nodes"]) for each in config["layers"]}[layer]


@pytest.mark.parametrize("merged", [0, 2])
def test_each_block_is_called_once(merged):
    for model in (
        tiny_backbone(num_merged_tokens=merged),
        tiny_classifier({"num_merged_tokens": merged}),
    ):
        assert [calls_in(model, f"block_{index}") for index in range(3)] == [1, 1, 1]
        assert calls_in(model, "final_norm") == 1


def test_summary_has_what_the_model_computes(capsys):
    """The scores' path used to come first: `get_layer(...).output` was a list, and `summary` had
    the shapes of other calls.
    """
    backbone = tiny_backbone()
    output = backbone.get_layer("block_2").output
    assert output is backbone.block_outputs["block_2"]
    assert output.shape == backbone.output_shape == (None, 13, 8)
    backbone.attention_scores  # noqa: B018
    backbone.summary()
    printed = capsys.readouterr().out
    assert printed.count("block_2") == 1
    assert printed.count("(None, 13, 8)") == 5  # embedding, three blocks, norm
    assert "with_scores" not in printed
    assert "Connected to" not in printed  # one layer after the other


def test_scores_of_a_loaded_and_of_a_cloned_backbone(rng, tmp_path):
    backbone, x = randomize(tiny_backbone(), rng), images(rng)
    attention = keras.Model(backbone.input, backbone.attention_scores)
    attention.save(tmp_path / "attention.keras")
    backbone.save(tmp_path / "backbone.keras")
    loaded, clone = (
        keras.saving.load_model(tmp_path / "backbone.keras"),
        keras.models.clone_model(backbone),
    )
    clone.set_weights(backbone.get_weights())  # a functional model, no `DeiTBackbone`
    expected = attention(x)
    for found in (
        keras.Model(loaded.input, loaded.attention_scores)(x),
        attention_model(clone)(x)["attention_scores"],
        keras.saving.load_model(tmp_path / "attention.keras")(x),
    ):
        for name, scores in expected.items():
            np.testing.assert_array_equal(numpy(found[name]), numpy(scores))


def test_compiles_under_xla(rng):
    backbone = randomize(tiny_backbone(**VARIANTS["deit3"]), rng)
    x = images(rng)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(backbone, jit_compile=True)
    elif BACKEND == "jax":
        import jax

        compiled = jax.jit(lambda x: backbone(x))
    else:
        import torch

        compiled = torch.compile(backbone, backend="eager", fullgraph=False)
    np.testing.assert_allclose(
        numpy(compiled(keras.ops.convert_to_tensor(x))), numpy(backbone(x)), atol=1e-5
    )


def test_the_model_itself_keeps_the_fused_attention(monkeypatch, rng):
    """Asking for symbolic scores must not slow the model down."""
    backbone = tiny_backbone()
    backbone.attention_scores  # noqa: B018

    def in_the_open(*args):
        raise AssertionError("the scores were computed")

    # JAX has no fused kernel on a CPU, and stands in here for itself on a GPU.
    monkeypatch.setattr(kernels, "_has_fused_attention", lambda query, training: True)
    monkeypatch.setattr(kernels, "attention_and_scores", in_the_open)
    x = images(rng)
    backbone(x)
    # Asked for scores, a block does compute them.
    with pytest.raises(AssertionError, match="the scores were computed"):
        backbone.blocks[0](np.zeros((2, 3, 8)), return_attention_scores=True)


def test_errors():
    with raises(
        "`patch_size` must divide the image: height 13 is not a multiple of 4. Use 12 or 16, "
        "resize first, or use `pad_images=True`. "
        "Received: input shape (None, 13, 32, 3), data_format='channels_last', patch_size=(4, 8)"
    ):
        tiny_backbone(image_shape=(13, 32, 3))
    with raises(
        "`num_heads` must divide `hidden_dim`: 8 is not a multiple of 3. Received: num_heads=3, "
        "hidden_dim=8"
    ):
        tiny_backbone(num_heads=3)
    with raises(
        "`image_shape` must be (height, width, channels) for data_format='channels_last', in "
        "pixels, such as (224, 224, 3). Received: image_shape=(12, 32)"
    ):
        tiny_backbone(image_shape=(12, 32))
    with raises(
        "`drop_path_schedule` must be one of 'linear', 'constant'. Received: "
        "drop_path_schedule='cosine'"
    ):
        tiny_backbone(drop_path_schedule="cosine")
    with raises("`num_layers` must be a positive integer. Received: num_layers=0"):
        tiny_backbone(num_layers=0)
    with raises(
        "`drop_path_rate` must be a probability in [0, 1); use 0.0 to switch it off. Received: "
        "drop_path_rate=1.0"
    ):
        tiny_backbone(drop_path_rate=1.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        tiny_backbone(depth=3)
