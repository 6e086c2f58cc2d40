import keras
import numpy as np
import pytest

from keras_deit.layers import SimpleFeaturePyramid
from tests import witness
from tests.helpers import numpy, raises, randomize, tiny_backbone

pytestmark = pytest.mark.backend

CHANNELS, DIM = 8, 6


@pytest.fixture
def feature_map(rng):
    return rng.normal(size=(2, 3, 5, CHANNELS)).astype("float32")


@pytest.fixture
def pyramid(rng):
    layer = SimpleFeaturePyramid(DIM)
    layer.build((None, 3, 5, CHANNELS))
    return randomize(layer, rng)


def upsampled(x, weights):
    """Position by position: each makes 2 x 2."""
    batch, rows, columns, _ = x.shape
    kernel, bias = weights["projection/kernel"].reshape(x.shape[-1], 2, 2, -1), weights["bias"]
    outputs = np.zeros((batch, 2 * rows, 2 * columns, len(bias)))
    for row in range(2 * rows):
        for column in range(2 * columns):
            outputs[:, row, column] = (
                x[:, row // 2, column // 2] @ kernel[:, row % 2, column % 2] + bias
            )
    return outputs


def pooled(x):
    """The maximum of 2 x 2; at an odd edge, of what there is."""
    return np.stack(
        [
            np.stack(
                [
                    x[:, row : row + 2, column : column + 2].max(axis=(1, 2))
                    for column in range(0, x.shape[2], 2)
                ],
                axis=1,
            )
            for row in range(0, x.shape[1], 2)
        ],
        axis=1,
    )


def smoothed(x, kernel):
    """A 3 x 3 convolution with zeros around."""
    _, rows, columns, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        padded[:, i : i + rows, j : j + columns] @ kernel[i, j] for i in range(3) for j in range(3)
    )


def expected_level(x, weights, level):
    if level == "P2":
        x = upsampled(x, witness.under(weights, "upsampling"))
        x = witness.layer_norm(x, witness.under(weights, "upsampling_norm"), 1e-6)
        x = upsampled(witness.gelu(x), witness.under(weights, "second_upsampling"))
    elif level == "P3":
        x = upsampled(x, witness.under(weights, "upsampling"))
    elif level == "P5":
        x = pooled(x)
    x = x @ weights["projection/kernel"]
    x = witness.layer_norm(x, witness.under(weights, "projection_norm"), 1e-6)
    x = smoothed(x, weights["smoothing/kernel"])
    return witness.layer_norm(x, witness.under(weights, "smoothing_norm"), 1e-6)


def test_equals_the_formula(pyramid, feature_map):
    """With odd rows and columns."""
    weights = witness.weights_of(pyramid)
    outputs = pyramid(feature_map)
    assert list(outputs) == ["P2", "P3", "P4", "P5"]
    for level, output in outputs.items():
        expected = expected_level(
            feature_map.astype("float64"), witness.under(weights, level), level
        )
        np.testing.assert_allclose(numpy(output), expected, atol=1e-4, err_msg=level)


def test_upsampling_is_that_of_keras_transposed_convolution(pyramid, feature_map):
    upsampling = pyramid.P3.upsampling
    twin = keras.layers.Conv2DTranspose(CHANNELS // 2, 2, strides=2)
    twin.build(feature_map.shape)
    kernel = numpy(upsampling.projection.kernel).reshape(CHANNELS, 2, 2, -1)
    twin.set_weights([kernel.transpose(1, 2, 3, 0), numpy(upsampling.bias)])
    np.testing.assert_allclose(numpy(upsampling(feature_map)), numpy(twin(feature_map)), atol=1e-5)


def test_channels_first_is_channels_last_transposed(pyramid, feature_map):
    first = SimpleFeaturePyramid(DIM, data_format="channels_first")
    first.build((None, CHANNELS, 3, 5))
    first.set_weights(pyramid.get_weights())
    outputs = first(feature_map.transpose(0, 3, 1, 2))
    symbols = first(keras.Input((CHANNELS, 3, 5)))
    for level, expected in pyramid(feature_map).items():
        np.testing.assert_allclose(
            numpy(outputs[level]).transpose(0, 2, 3, 1), numpy(expected), atol=1e-6
        )
        assert tuple(symbols[level].shape) == (None, *outputs[level].shape[1:])


@pytest.mark.parametrize(("size", "half"), [(1, 1), (2, 1), (5, 3), (6, 3), (None, None)])
def test_sizes(size, half):
    outputs = SimpleFeaturePyramid(DIM)(keras.Input((size, 4, CHANNELS)))
    times = [size and 4 * size, size and 2 * size, size, half]
    assert [output.shape for output in outputs.values()] == [
        (None, rows, columns, DIM) for rows, columns in zip(times, (16, 8, 4, 2))
    ]


def test_maps_of_any_size(pyramid, rng):
    """A model of unknown rows and columns answers as the layer does."""
    inputs = keras.Input((None, None, CHANNELS))
    model = keras.Model(inputs, pyramid(inputs))
    for size in ((1, 2), (4, 3)):
        x = rng.normal(size=(2, *size, CHANNELS)).astype("float32")
        outputs = model.predict(x, verbose=0)
        for level, expected in pyramid(x).items():
            np.testing.assert_allclose(outputs[level], numpy(expected), atol=1e-5)


def test_levels_are_those_that_were_asked_for(pyramid, feature_map):
    part = SimpleFeaturePyramid(DIM, levels=["P5", "P3"])
    outputs = part(feature_map)
    assert list(outputs) == ["P5", "P3"]
    assert part.count_params() < pyramid.count_params()
    part.P3.set_weights(pyramid.P3.get_weights())
    part.P5.set_weights(pyramid.P5.get_weights())
    for level, output in part(feature_map).items():
        np.testing.assert_allclose(numpy(output), numpy(pyramid(feature_map)[level]), atol=1e-6)


def test_the_names_count_from_the_input_level(pyramid, feature_map):
    other = SimpleFeaturePyramid(DIM, levels=("P0", "P1", "P2", "P3"), input_level="P2")
    other.build(feature_map.shape)
    other.set_weights(pyramid.get_weights())
    expected = pyramid(feature_map)
    for level, output in other(feature_map).items():
        twin = f"P{int(level[1]) + 2}"
        np.testing.assert_allclose(numpy(output), numpy(expected[twin]), atol=1e-6)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_behind_a_backbone(data_format, rng):
    shape = (16, 24, 3) if data_format == "channels_last" else (3, 16, 24)
    backbone = tiny_backbone(image_shape=shape, patch_size=4, num_layers=1, data_format=data_format)
    neck = SimpleFeaturePyramid(DIM, ("P1", "P2", "P3"), input_level="P2", data_format=data_format)
    model = keras.Model(backbone.input, neck(backbone.pyramid_outputs["P2"]))
    outputs = model.predict(rng.normal(size=(2, *shape)).astype("float32"), verbose=0)
    sizes = {"P1": (8, 12), "P2": (4, 6), "P3": (2, 3)}
    channels_last = data_format == "channels_last"
    assert {level: output.shape for level, output in outputs.items()} == {
        level: (2, *size, DIM) if channels_last else (2, DIM, *size)
        for level, size in sizes.items()
    }


def test_errors():
    with raises(
        "`levels` must be different levels of 'P2', 'P3', 'P4', 'P5': those that the pyramid can "
        "make of `input_level`. Received: levels=('P2', 'P6'), input_level='P4'"
    ):
        SimpleFeaturePyramid(levels=("P2", "P6"))
    with raises(
        "`levels` must be different levels of 'P0', 'P1', 'P2': those that the pyramid can make "
        "of `input_level`. Received: levels=['P1', 'P1'], input_level='P1'"
    ):
        SimpleFeaturePyramid(levels=["P1", "P1"], input_level="P1")
    for levels in ((), "P4", [4], [["P4"]], None):
        with raises(
            "`levels` must be different levels of 'P2', 'P3', 'P4', 'P5': those that the pyramid "
            f"can make of `input_level`. Received: levels={levels!r}, input_level='P4'"
        ):
            SimpleFeaturePyramid(levels=levels)
    for level in ("4", 4, "p4", "P04", "P4\n", None):
        with raises(
            "`input_level` must be the name of a level, such as 'P4' for a stride of 2**4 pixels. "
            f"Received: input_level={level!r}"
        ):
            SimpleFeaturePyramid(input_level=level)
    with raises(
        "`SimpleFeaturePyramid` takes a batch of feature maps (rank 4). Add a batch axis to a "
        "single map. Received: input shape (3, 5, 8)"
    ):
        SimpleFeaturePyramid().build((3, 5, 8))
    for shape in ((None, 3, 5, 6), (None, 3, 5, None)):
        with raises(
            "`SimpleFeaturePyramid` needs a known number of channels that is a multiple of 4, "
            f"because each finer level halves it. Received: input shape {shape}, "
            "data_format='channels_last', levels=('P2', 'P3', 'P4', 'P5'), input_level='P4'"
        ):
            SimpleFeaturePyramid().build(shape)
    # No level that was asked for halves them twice.
    SimpleFeaturePyramid(levels=("P3",)).build((None, 3, 5, 6))
