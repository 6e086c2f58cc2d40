"""One model for images of any size: a model of each size, loaded from its preset, is the witness."""

import keras
import numpy as np
import pytest

from keras_deit.layers import DeiTImageConverter
from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from keras_deit.visualization import attention_maps, position_similarity
from tests.conftest import BACKEND
from tests.helpers import (
    edit_json,
    images,
    numpy,
    raises,
    randomize,
    raw_images,
    same_arrays,
    tiny_backbone,
    tiny_classifier,
)
from tests.models.tiny import LOSS

pytestmark = pytest.mark.backend

ANY = (None, None, 3)
# The positions' own, larger, smaller, of another aspect ratio
SIZES = [(12, 32), (24, 40), (8, 16), (4, 64)]
VARIANTS = {
    "plain": {},
    "distilled": {"use_distillation_token": True},
    "deit3": {"position_scope": "patches", "layer_scale_init_value": 0.1},
    "registers": {"num_register_tokens": 2},
    "rotary": {"position_scope": "rotary", "num_register_tokens": 1},
}


@pytest.fixture(params=VARIANTS)
def preset(request, tmp_path, rng):
    randomize(tiny_backbone(**VARIANTS[request.param], num_layers=2), rng).save_to_preset(
        tmp_path / "preset"
    )
    return tmp_path / "preset"


@pytest.fixture
def plain(tmp_path, rng):
    """The preset of a classifier."""
    classifier = tiny_classifier({"num_layers": 2, "use_distillation_token": False})
    randomize(classifier, rng).save_to_preset(tmp_path / "preset")
    return tmp_path / "preset"


def load(preset, image_shape=ANY, cls=DeiTBackbone, **overrides):
    return cls.from_preset(preset, image_shape=image_shape, **overrides)


def test_agrees_with_a_model_of_each_size(preset, rng):
    backbone = load(preset)
    for size in SIZES:
        x, fixed = images(rng, 2, (*size, 3)), load(preset, (*size, 3))
        expected = numpy(fixed(x))
        np.testing.assert_allclose(numpy(backbone(x)), expected, atol=1e-5)
        np.testing.assert_allclose(backbone.predict(x, verbose=0), expected, atol=1e-5)
        assert backbone.grid_size_of(size) == fixed.grid_size


def test_its_own_preset_and_file(preset, tmp_path, rng):
    """Saved with any size and loaded with one, and the other way round."""
    backbone = load(preset)
    backbone.save_to_preset(tmp_path / "any")
    backbone.save(tmp_path / "any.keras")
    assert "images of any size" in (tmp_path / "any" / "README.md").read_text()
    x = images(rng, 2, (8, 24, 3))
    expected = numpy(backbone(x))
    for again in (
        DeiTBackbone.from_preset(tmp_path / "any"),
        keras.saving.load_model(tmp_path / "any.keras"),
    ):
        assert again.get_config() == {**backbone.get_config(), "name": again.name}
        same_arrays(again(x), expected)
    fixed = load(tmp_path / "any", (8, 24, 3))
    assert fixed.get_config()["position_grid_size"] is None
    np.testing.assert_allclose(numpy(fixed(x)), expected, atol=1e-5)


def test_a_fixed_size_keeps_todays_graph(plain):
    """Without a map and without resampling, however the preset was saved."""
    for backbone in (tiny_backbone(), load(plain, (8, 16, 3))):
        assert backbone.patch_embedding.flatten
        assert backbone.position_grid_size == backbone.grid_size
        assert backbone.get_config()["position_grid_size"] is None
    resampled = load(plain, (8, 16, 3), position_grid_size=(3, 4))
    assert not resampled.patch_embedding.flatten
    assert resampled.get_config()["position_grid_size"] == (3, 4)


def test_a_fixed_size_with_positions_of_another_grid(plain, rng):
    """For training at one size on positions of another, which then stay as they are."""
    x = images(rng, 2, (8, 16, 3))
    resampled = load(plain, (8, 16, 3), position_grid_size=(3, 4))
    np.testing.assert_allclose(numpy(resampled(x)), numpy(load(plain, (8, 16, 3))(x)), atol=1e-5)
    same_arrays(
        resampled.token_position_embedding.positions,
        DeiTBackbone.from_preset(plain).token_position_embedding.positions,
    )


@pytest.mark.parametrize("size", [(13, 30), (2, 3), (12, 32)])
def test_padding_adds_zeros_at_the_bottom_and_the_right(preset, size, rng):
    x = images(rng, 2, (*size, 3))
    padded = np.pad(x, ((0, 0), (0, -size[0] % 4), (0, -size[1] % 8), (0, 0)))
    fixed, backbone = load(preset, padded.shape[1:]), load(preset, pad_images=True)
    np.testing.assert_allclose(numpy(backbone(x)), numpy(fixed(padded)), atol=1e-5)
    assert backbone.grid_size_of(size) == fixed.grid_size
    one_size = load(preset, x.shape[1:], pad_images=True)
    assert one_size.grid_size == fixed.grid_size
    np.testing.assert_allclose(numpy(one_size(x)), numpy(fixed(padded)), atol=1e-5)


def test_channels_first_is_channels_last_transposed(preset, rng):
    last, first = load(preset), load(preset, (3, None, None), data_format="channels_first")
    assert load(preset, data_format="channels_last").input_shape == (None, *ANY)
    x = images(rng, 2, (8, 24, 3))
    transposed = x.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(numpy(first(transposed)), numpy(last(x)), atol=1e-6)
    maps = numpy(first.features(transposed, blocks=(1,))["block_1"])
    expected = numpy(last.features(x, blocks=(1,))["block_1"])
    np.testing.assert_allclose(maps.transpose(0, 2, 3, 1), expected, atol=1e-6)


def test_maps_features_and_scores(preset, rng):
    backbone = load(preset)
    model = keras.Model(
        backbone.input, {**backbone.pyramid_outputs, "scores": backbone.attention_scores}
    )
    assert backbone.pyramid_outputs["P2"].shape == (None, None, None, 8)
    for size in SIZES:
        x, fixed = images(rng, 2, (*size, 3)), load(preset, (*size, 3))
        found, grid_size = model(x), backbone.grid_size_of(size)
        expected = keras.Model(
            fixed.input, {**fixed.pyramid_outputs, "scores": fixed.attention_scores}
        )(x)
        for part, other in zip(keras.tree.flatten(found), keras.tree.flatten(expected)):
            np.testing.assert_allclose(numpy(part), numpy(other), atol=1e-5)
        maps = attention_maps(found["scores"]["block_1"], backbone.num_prefix_tokens, grid_size)
        assert maps.shape == (2, 2, *grid_size)
        features = backbone.features(x, blocks=(0,))["block_0"]
        np.testing.assert_allclose(
            numpy(features), numpy(fixed.features(x, blocks=(0,))["block_0"]), atol=1e-5
        )


def test_positions_of_a_backbone_of_any_size(plain):
    assert position_similarity(load(plain)).shape == (3, 4, 3, 4)


@pytest.mark.parametrize("pooling", ["token", "mean", "token_and_mean", "map"])
def test_every_pooling(pooling, tmp_path, rng):
    classifier = tiny_classifier(
        {"num_layers": 1, "use_distillation_token": False}, pooling=pooling, preprocessor=None
    )
    randomize(classifier, rng).save_to_preset(tmp_path / "preset")
    classifier = load(tmp_path / "preset", cls=DeiTImageClassifier)
    for size in SIZES[:2]:
        x = images(rng, 2, (*size, 3))
        expected = load(tmp_path / "preset", (*size, 3), DeiTImageClassifier)(x)
        np.testing.assert_allclose(classifier.predict(x, verbose=0), numpy(expected), atol=1e-5)


def test_the_preprocessor_keeps_its_own_size(plain, tmp_path, rng):
    classifier = load(plain, cls=DeiTImageClassifier)
    assert classifier.preprocessor.image_size == (12, 32)
    x = raw_images(rng)
    expected = DeiTImageClassifier.from_preset(plain).predict(x, verbose=0)
    np.testing.assert_allclose(classifier.predict(x, verbose=0), expected, atol=1e-5)
    np.testing.assert_allclose(classifier.predict(list(x), verbose=0), expected, atol=1e-5)
    larger = load(plain, cls=DeiTImageClassifier, preprocessor=DeiTImageConverter((24, 40)))
    fixed = load(plain, (24, 40, 3), DeiTImageClassifier)
    np.testing.assert_allclose(larger.predict(x, verbose=0), fixed.predict(x, verbose=0), atol=1e-5)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match="empty.png"):
        classifier.predict([tmp_path / "empty.png"], verbose=0)


@pytest.mark.parametrize(
    "jit_compile", {"tensorflow": [False, True], "jax": [True], "torch": [False]}[BACKEND]
)
def test_training_with_two_sizes(jit_compile, plain, rng):
    """The gradient reaches the positions through their resampling."""
    classifier = load(plain, cls=DeiTImageClassifier, preprocessor=None, pad_images=True)
    classifier.compile("sgd", **{**LOSS, "jit_compile": jit_compile})
    positions = classifier.backbone.token_position_embedding.positions
    for size in ((16, 24), (6, 40)):
        before = numpy(positions)
        classifier.fit(images(rng, 4, (*size, 3)), np.arange(4), verbose=0)
        moved = abs(numpy(positions) - before).max(axis=-1)
        assert np.isfinite(moved).all() and (moved > 0).all()


@pytest.mark.skipif(BACKEND == "torch", reason="no int8 product on PyTorch's CPU")
def test_quantized(plain, rng):
    classifier = load(plain, cls=DeiTImageClassifier, preprocessor=None)
    x = images(rng, 2, (24, 40, 3))
    expected = classifier.predict(x, verbose=0)
    with pytest.warns(UserWarning, match="quantize"):
        classifier.quantize("int8")
    found = classifier.predict(x, verbose=0)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98


def test_images_that_the_patches_do_not_divide(plain, rng):
    """Before the first step, in the same words on each backend."""
    classifier = load(plain, cls=DeiTImageClassifier, preprocessor=None)
    classifier.compile("sgd", **LOSS)
    message = (
        "`patch_size` must divide the image: width 30 is not a multiple of 8. Use 24 or 32, resize "
        "first, or use `pad_images=True`. Received: input shape (2, 12, 30, 3), "
        "data_format='channels_last', patch_size=(4, 8)"
    )
    x, y = images(rng, 2, (12, 30, 3)), np.zeros(2)
    for way in (
        lambda: classifier.predict(x),
        lambda: classifier.evaluate(x, y),
        lambda: classifier.fit(x, y),
        lambda: classifier.fit(x[:, :, :24], y, validation_data=(x, y)),
        lambda: classifier.backbone.predict_on_batch(x),
    ):
        with raises(message):
            way()
    with pytest.raises(ValueError) as error:
        classifier(x)
    assert message in str(error.value)
    with raises(
        "Images must have shape (batch, height, width, 3). Convert the images, or load the model "
        "with another `image_shape`. Received: images of shape (2, 12, 32, 1)"
    ):
        classifier.predict(np.zeros((2, 12, 32, 1), "float32"))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a graph of TensorFlow does not know the sizes")
def test_a_graph_refuses_what_no_check_has_seen(plain, rng):
    """No pixel may get lost in a reshape."""
    import tensorflow as tf

    backbone = load(plain)
    graph = tf.function(backbone).get_concrete_function(tf.TensorSpec((None, None, None, 3)))
    for size in ((12, 30), (13, 32), (24, 12)):
        with pytest.raises(tf.errors.InvalidArgumentError):
            graph(images(rng, 4, (*size, 3)))


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's own exporter")
def test_torch_export_with_dynamic_height_and_width(plain, rng):
    """Comparing a symbolic size with a number, or making a tensor of it, used to fix the size."""
    import torch

    model = load(plain, cls=DeiTImageClassifier, preprocessor=None)
    images = torch.zeros((2, 40, 48, 3))
    batch, rows, columns = (
        torch.export.Dim(name, min=2, max=99) for name in ("batch", "rows", "columns")
    )
    sizes = {0: batch, 1: 4 * rows, 2: 8 * columns}
    program = torch.export.export(model, (images,), dynamic_shapes=((sizes,),)).module()
    for size in ((12, 32), (24, 40), (8, 64)):
        x = torch.tensor(rng.normal(size=(3, *size, 3)).astype("float32"))
        np.testing.assert_allclose(numpy(program(x)), numpy(model(x)), atol=1e-5)


def test_errors(plain, tmp_path):
    for image_shape in ((None, 32, 3), [12, None, 3]):
        with raises(
            "`image_shape` must have a height and a width, or `None` for both, which means images "
            f"of any size. Received: image_shape={tuple(image_shape)!r}"
        ):
            tiny_backbone(image_shape=image_shape)
    with raises("`image_shape` must be a positive integer. Received: image_shape=None"):
        tiny_backbone(image_shape=(None, None, None))
    with raises(
        "Images of any size need `position_grid_size`, the (rows, columns) of the learned "
        "positions: those of the images that the model is trained on, such as (14, 14) for 224 "
        "pixels and patches of 16. Received: image_shape=(None, None, 3), position_grid_size=None"
    ):
        tiny_backbone(image_shape=ANY)
    with raises("`position_grid_size` must be a positive integer. Received: position_grid_size=0"):
        tiny_backbone(image_shape=ANY, position_grid_size=(3, 0))
    with raises("`pad_images` must be `True` or `False`. Received: pad_images='no'"):
        tiny_backbone(pad_images="no")
    with raises(
        "`position_grid_size` is for learned positions. Use `None`, or another `position_scope`. "
        "Received: position_scope='rotary', position_grid_size=4"
    ):
        tiny_backbone(position_scope="rotary", position_grid_size=4)
    with raises(
        "Tokens are merged only where their number is known. Use an `image_shape` without `None`, "
        "or `num_merged_tokens=0`. Received: image_shape=(None, None, 3), num_merged_tokens=2"
    ):
        load(plain, num_merged_tokens=2)
    backbone = load(plain)
    with raises(
        "`patch_size` must divide the image: height 13 is not a multiple of 4. Use 12 or 16, "
        "resize first, or use `pad_images=True`. Received: input shape (None, 13, 13, 3), "
        "data_format='channels_last', patch_size=(4, 8)"
    ):
        backbone.grid_size_of(13)
    with raises(
        "`grid_size` must be the (rows, columns) of the image's patches. For a backbone that takes "
        "images of any size, use `backbone.grid_size_of(image_size)`. Received: grid_size=(None, "
        "None)"
    ):
        attention_maps(np.zeros((1, 2, 13, 13)), 1, backbone.grid_size)
    with raises(
        "`position_similarity` needs a backbone with learned positions. Received: "
        "position_scope='rotary'"
    ):
        position_similarity(tiny_backbone(position_scope="rotary"))


@pytest.mark.parametrize(
    ("image_shape", "grid"),
    [([None, 32, 3], [3, 4]), ([None, None, None], [3, 4]), ([None, None, 3], None)],
)
def test_a_file_that_leaves_a_size_open(image_shape, grid, plain):
    def change(content):
        content["config"].update(image_shape=image_shape, position_grid_size=grid)

    edit_json(plain / "config.json", change)
    with raises(
        f"'image_shape' in {plain / 'config.json'} may have null for both height and width, and "
        "then needs 'position_grid_size'. Restore the file. Received: "
        f"image_shape={image_shape}, position_grid_size={grid}"
    ):
        DeiTBackbone.from_preset(plain)
