"""`features` and `pyramid_outputs`: what the blocks know, as tokens and as maps."""

import gc

import keras
import numpy as np
import pytest

from keras_deit import presets
from keras_deit.models import DeiTBackbone
from tests import witness
from tests.conftest import BACKEND
from tests.examples.test_using import torchvision  # noqa: F401
from tests.helpers import images, numpy, raises, randomize, same_arrays, tiny_backbone

pytestmark = pytest.mark.backend

VARIANTS = {
    "plain": {},
    "distilled": {"use_distillation_token": True},
    "deit3": {"position_scope": "patches", "layer_scale_init_value": 0.1},
    "registers": {"num_register_tokens": 2, "use_class_token": False},
}


@pytest.fixture(params=VARIANTS)
def backbone(request, rng):
    return randomize(tiny_backbone(**VARIANTS[request.param]), rng)


def expected_features(backbone, x, index, norm, reshape):
    weights, config = witness.weights_of(backbone), backbone.get_config()
    tokens = witness.backbone(x.astype("float64"), weights, config)["block_outputs"][
        f"block_{index}"
    ]
    if norm:
        tokens = witness.layer_norm(tokens, witness.under(weights, "final_norm"), 1e-6)
    return tokens[:, -12:].reshape(-1, 3, 4, 8) if reshape else tokens


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("reshape", [True, False])
def test_agrees_with_the_witness(backbone, norm, reshape, rng):
    x = images(rng)
    found = backbone.features(x, blocks=(-1, 0), norm=norm, reshape=reshape)
    assert list(found) == ["block_2", "block_0"]
    for index in (0, 2):
        expected = expected_features(backbone, x, index, norm, reshape)
        np.testing.assert_allclose(numpy(found[f"block_{index}"]), expected, rtol=1e-5, atol=1e-5)


def test_all_blocks_by_default(rng):
    backbone, x = randomize(tiny_backbone(), rng), images(rng)
    found = backbone.features(x, norm=False, reshape=False)
    same_arrays(found, keras.Model(backbone.input, backbone.block_outputs)(x))
    last = backbone.features(x, [np.int64(2)])["block_2"]
    same_arrays(last, keras.Model(backbone.input, backbone.pyramid_outputs)(x)["P2"])


def test_nothing_after_the_last_block_that_is_asked_for(rng, monkeypatch):
    backbone, x = randomize(tiny_backbone(), rng), images(rng)
    expected = numpy(backbone.features(x, (1,))["block_1"])

    def too_far(*args, **kwargs):
        raise AssertionError("the last block was computed")

    monkeypatch.setattr(backbone.blocks[2], "call", too_far)
    np.testing.assert_array_equal(numpy(backbone.features(x, (1,))["block_1"]), expected)
    with pytest.raises(AssertionError, match="the last block was computed"):
        backbone.features(x, (2,))


def test_a_model_on_the_features_saves_and_loads(backbone, rng, tmp_path):
    x = images(rng)
    expected = backbone.features(x, (0, 2))
    symbolic = backbone.features(backbone.input, (0, 2))
    assert symbolic["block_0"].shape == (None, 3, 4, 8)
    flat = keras.Model(backbone.input, symbolic)
    assert flat.get_layer("block_1") is backbone.blocks[1]
    outer = keras.Input((12, 32, 3))
    nested = keras.Model(outer, backbone.features(keras.layers.Rescaling(0.5)(outer), (0, 2)))
    for name, model, inputs in (("flat", flat, x), ("nested", nested, 2 * x)):
        same_arrays(model(inputs), expected)
        assert len(model.trainable_variables) == len(backbone.trainable_variables)
        model.save(tmp_path / f"{name}.keras")
        same_arrays(keras.saving.load_model(tmp_path / f"{name}.keras")(inputs), expected)


def test_channels_first_is_channels_last_transposed(rng):
    last = randomize(tiny_backbone(), rng)
    first = tiny_backbone(image_shape=(3, 12, 32), data_format="channels_first")
    first.set_weights(last.get_weights())
    x = images(rng)
    found = first.features(x.transpose(0, 3, 1, 2), (1,))["block_1"]
    assert found.shape == (4, 8, 3, 4)
    np.testing.assert_array_equal(
        numpy(found).transpose(0, 2, 3, 1), numpy(last.features(x, (1,))["block_1"])
    )


def test_repeated_calls_build_no_graph(rng):
    backbone, x = randomize(tiny_backbone(), rng), images(rng)

    def symbolic_tensors():
        gc.collect()
        return sum(isinstance(thing, keras.KerasTensor) for thing in gc.get_objects())

    backbone.features(x, (0, 1))
    before = symbolic_tensors()
    for _ in range(3):
        backbone.features(x, (0, 1))
        backbone.features(x, [0, -2])  # the same blocks
        backbone.features(backbone.input, (0, 1))
    assert symbolic_tensors() == before


class Features(keras.layers.Layer):
    """A layer of a user's that calls `features` inside its own `call`."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def call(self, inputs):
        return self.backbone.features(inputs, (1,))["block_1"]


def test_rates_act_in_training_alone(rng):
    """Also if the first call of all was in training."""
    backbone = randomize(tiny_backbone(dropout_rate=0.5), rng)
    x = images(rng)
    layer = Features(backbone)
    trained = numpy(layer(x, training=True))
    inference = numpy(layer(x))
    assert not np.allclose(trained, inference)
    np.testing.assert_array_equal(numpy(layer(x, training=False)), inference)


def test_compiles(rng):
    """On TensorFlow and JAX, the first call may be the compiled one."""
    backbone, x = randomize(tiny_backbone(), rng), images(rng)

    def features(x):
        return backbone.features(x, (1,))["block_1"]

    if BACKEND == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(features, jit_compile=True)
    elif BACKEND == "jax":
        import jax

        compiled = jax.jit(features)
    else:
        import torch

        features(x)
        compiled = torch.compile(features, backend="eager", fullgraph=False)
    found = numpy(compiled(keras.ops.convert_to_tensor(x)))
    np.testing.assert_allclose(found, numpy(features(x)), atol=1e-5)


def test_tokens_of_a_backbone_that_merges(rng):
    backbone, x = randomize(tiny_backbone(num_merged_tokens=2), rng), images(rng)
    found = backbone.features(x, reshape=False)
    assert [tokens.shape[1] for tokens in found.values()] == [11, 9, 7]
    with raises(
        "A map needs one token for each patch. Use `reshape=False`, or a backbone with "
        "`num_merged_tokens=0`. Received: reshape=True, num_merged_tokens=2"
    ):
        backbone.features(x)


def test_no_maps_where_patches_are_dropped(rng):
    """In training, the patches that stay would fill the maps of fewer images."""
    backbone, x = randomize(tiny_backbone(patch_dropout_rate=0.5), rng), images(rng)
    assert backbone.features(x, (1,), reshape=False)["block_1"].shape == (4, 13, 8)
    with raises(
        "A map needs one token for each patch. Use `reshape=False`, or a backbone with "
        "`patch_dropout_rate=0`. Received: reshape=True, patch_dropout_rate=0.5"
    ):
        backbone.features(x)
    with raises(
        "`pyramid_outputs` needs one token for each patch, so use `patch_dropout_rate=0`. "
        "Received: patch_dropout_rate=0.5"
    ):
        backbone.pyramid_outputs["P2"]


def test_a_backbone_without_a_last_norm(rng):
    backbone, x = randomize(tiny_backbone(use_final_norm=False), rng), images(rng)
    same_arrays(backbone.features(x, reshape=False)["block_2"], backbone(x))
    same_arrays(backbone.features(x), backbone.features(x, norm=False))


@pytest.mark.parametrize(
    "blocks", [(), (3,), (-4,), (1, 1), (0, -3), 1, "1", (True,), (1.0,), (None,), {1: 2}]
)
def test_errors_of_blocks(blocks):
    with raises(
        "`blocks` must be a tuple of different block indices from 0 to 2, or from -3 to -1 to "
        f"count from the end. Received: blocks={blocks!r}"
    ):
        tiny_backbone().features(np.zeros((1, 12, 32, 3)), blocks)


def test_other_errors():
    backbone, x = tiny_backbone(), np.zeros((1, 12, 32, 3))
    with raises("`norm` must be `True` or `False`. Received: norm=1"):
        backbone.features(x, norm=1)
    with raises("`reshape` must be `True` or `False`. Received: reshape='map'"):
        backbone.features(x, reshape="map")
    with raises(
        "Images must have shape (batch, 12, 32, 3). Convert the images, or load the model with "
        "another `image_shape`. Received: images of shape (1, 32, 12, 3)"
    ):
        backbone.features(x.transpose(0, 2, 1, 3))


def test_pyramid_is_the_patch_tokens_in_their_places(backbone, rng):
    x = images(rng)
    pyramid = keras.Model(backbone.input, backbone.pyramid_outputs)(x)
    # Patches of 4 x 8 pixels: the level of 2 ** 2.5, rounded to even.
    assert set(pyramid) == {"P2"}
    tokens = numpy(backbone(x))[:, backbone.num_prefix_tokens :]
    np.testing.assert_array_equal(numpy(pyramid["P2"]), tokens.reshape(4, 3, 4, 8))


@pytest.mark.parametrize(
    ("patch_size", "level"), [(16, "P4"), (14, "P4"), (8, "P3"), (4, "P2"), (32, "P5")]
)
def test_pyramid_level_is_the_power_of_two_nearest_to_the_patch(patch_size, level):
    backbone = DeiTBackbone((2 * patch_size, patch_size, 3), patch_size, 1, 1, 4, 4)
    assert list(backbone.pyramid_outputs) == [level]


@pytest.mark.peer
@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"]
)
@pytest.mark.parametrize("norm", [True, False])
def test_equals_timm(name, norm, rng, torchvision):  # noqa: F811
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm.models")
    model = timm.create_model(name, img_size=(32, 48), embed_dim=16, depth=4, num_heads=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(0, 0.3, parameter.shape)))
    backbone = DeiTBackbone.from_preset(
        name,
        load_weights=False,
        image_shape=(32, 48, 3),
        num_layers=4,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=64,
    )
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    tensors = {key: value for key, value in tensors.items() if not key.startswith("head")}
    presets.assign_tensors(backbone, tensors, source="timm")
    x = images(rng, shape=(32, 48, 3))
    with torch.no_grad():
        maps = model.forward_intermediates(
            torch.from_numpy(x.transpose(0, 3, 1, 2)),
            indices=[0, 2, 3],
            norm=norm,
            intermediates_only=True,
        )
    found = backbone.features(x, (0, 2, 3), norm=norm)
    for expected, name in zip(maps, found, strict=True):
        expected = expected.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(numpy(found[name]), expected, rtol=1e-4, atol=1e-4)
