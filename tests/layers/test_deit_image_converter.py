import inspect
import json

import keras
import numpy as np
import pytest
from PIL import Image

from keras_deit.layers import DeiTImageConverter
from tests.helpers import numpy, raises

pytestmark = pytest.mark.backend


def levels(converter, images):
    """The converter's result before normalisation, 0 to 255."""
    return (numpy(converter(images)) * np.array(converter.std) + np.array(converter.mean)) * 255


def pillow(image, size, cover):
    """The official evaluation: torchvision's Resize of the shorter side on Pillow, then its
    CenterCrop.
    """
    image = Image.fromarray(image)
    width, height = image.size
    if width <= height:
        new_width, new_height = cover, int(cover * height / width)
    else:
        new_width, new_height = int(cover * width / height), cover
    image = image.resize((new_width, new_height), Image.BICUBIC)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size))).astype("float64")


@pytest.mark.parametrize(
    ("size", "crop_ratio", "cover"),
    [(224, 0.875, 256), (224, 1.0, 224), (384, 0.875, 438), (224, 0.9, 248)],
)
@pytest.mark.parametrize("upright", [False, True])
def test_agrees_with_pillow_on_photographs(size, crop_ratio, cover, upright, photographs):
    converter = DeiTImageConverter(size, crop_ratio=crop_ratio)
    for photo in photographs:
        photo = np.ascontiguousarray(photo.transpose(1, 0, 2)) if upright else photo
        difference = abs(levels(converter, photo) - pillow(photo, size, cover))
        assert difference.max() <= 2.001
        # Nearly every value is Pillow's own.
        assert (difference > 0.5).mean() < 0.002


def test_small_images_are_enlarged(photographs):
    photo = np.ascontiguousarray(photographs[0][:40, :30])
    difference = abs(levels(DeiTImageConverter(224), photo) - pillow(photo, 224, 256))
    assert difference.max() <= 2.001


def test_one_image_a_batch_uint8_and_float_are_alike(photographs):
    converter = DeiTImageConverter((96, 128), crop_ratio=1.0)
    batch = numpy(converter(np.stack(photographs)))
    assert batch.shape == (2, 96, 128, 3)
    assert batch.dtype == "float32"
    for photo, row in zip(photographs, batch):
        np.testing.assert_allclose(numpy(converter(photo)), row, atol=1e-5)
        np.testing.assert_allclose(numpy(converter(photo.astype("float32"))), row, atol=1e-5)


def test_channels_first_is_channels_last_transposed(photographs):
    last = DeiTImageConverter(64, data_format="channels_last")
    first = DeiTImageConverter(64, data_format="channels_first")
    photo = photographs[0]
    expected = numpy(last(photo)).transpose(2, 0, 1)
    np.testing.assert_allclose(numpy(first(photo.transpose(2, 0, 1))), expected, atol=1e-6)
    batch = numpy(first(photo.transpose(2, 0, 1)[None]))
    np.testing.assert_allclose(batch[0], expected, atol=1e-6)
    assert first.compute_output_shape((None, 3, 427, 640)) == (None, 3, 64, 64)


def test_runs_inside_tf_data_whatever_the_backend(photographs):
    import tensorflow as tf

    converter = DeiTImageConverter(64)
    photos = [photographs[0], np.ascontiguousarray(photographs[1][:300, :200])]
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(photos), output_signature=tf.TensorSpec((None, None, 3), "uint8")
    ).map(converter)
    assert dataset.element_spec.shape == (64, 64, 3)
    results = list(dataset.batch(2))
    assert len(results) == 1
    for photo, result in zip(photos, results[0].numpy()):
        # A value that stands between two levels may round either way on another backend: one level
        # is 1 / (255 * 0.224).
        difference = abs(result - numpy(converter(photo)))
        assert difference.max() < 0.02
        assert (difference > 1e-5).mean() < 1e-3


def test_any_number_of_channels(rng):
    image = rng.integers(0, 256, (20, 30, 5)).astype("uint8")
    assert numpy(DeiTImageConverter(16, mean=0.5, std=0.5)(image)).shape == (16, 16, 5)
    mean = (0.1, 0.2, 0.3, 0.4, 0.5)
    assert numpy(DeiTImageConverter(16, mean=mean, std=0.5)(image)).shape == (16, 16, 5)
    gray = DeiTImageConverter(20, crop_ratio=1.0, mean=(0.5,), std=(0.25,))
    square = rng.integers(0, 256, (20, 20, 1)).astype("uint8")
    np.testing.assert_allclose(numpy(gray(square)), (square / 255 - 0.5) / 0.25, atol=1e-5)


def test_config_is_the_arguments_and_comes_back(photographs):
    converter = DeiTImageConverter(
        (64, 32), 0.9, "bilinear", (0.5,), (0.2,), "channels_last", name="mine"
    )
    config = converter.get_config()
    arguments = set(inspect.signature(DeiTImageConverter.__init__).parameters) - {"self", "kwargs"}
    assert set(config) == arguments | {"name", "trainable", "dtype"}
    twin = DeiTImageConverter.from_config(json.loads(json.dumps(config)))
    assert twin.get_config() == config
    np.testing.assert_array_equal(numpy(twin(photographs[0])), numpy(converter(photographs[0])))


def test_keeps_float32_under_a_half_precision_policy(photographs):
    """In bfloat16 a normalised photograph would have 8 bits at most, and the resize fewer."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert str(numpy(DeiTImageConverter(32)(photographs[0])).dtype) == "float32"
    half = DeiTImageConverter(32, dtype="float16")
    assert str(numpy(half(photographs[0])).dtype) == "float16"


def test_has_a_symbolic_shape():
    assert DeiTImageConverter((64, 32))(keras.Input((None, None, 3))).shape == (None, 64, 32, 3)


@pytest.mark.parametrize("crop_ratio", [0.875, 1.0])
@pytest.mark.parametrize("cover", [True, False])
def test_the_crop_box_is_what_the_model_sees(crop_ratio, cover):
    converter = DeiTImageConverter((32, 48), crop_ratio=crop_ratio, crop_to_aspect_ratio=cover)
    top, left, height, width = converter.crop_box(200, 420)

    def seen(margin):
        """What becomes of an image that is white inside the box less a margin, in pixels of the
        result.
        """
        vertical, horizontal = margin * height / 32, margin * width / 48
        image = np.zeros((200, 420, 3), "uint8")
        image[
            round(top + vertical) : round(top + height - vertical),
            round(left + horizontal) : round(left + width - horizontal),
        ] = 255
        return levels(converter, image).mean(axis=-1)

    assert seen(0)[3:-3, 3:-3].min() > 254
    inner = seen(4)
    for border in (inner[:2], inner[-2:], inner[:, :2], inner[:, -2:]):
        assert border.max() < 1
    assert inner[7:-7, 7:-7].min() > 254


def test_halves_go_up_as_in_pillow(photographs):
    """At a ratio of 2 many values stand exactly between two levels: rounded to even, 4292 of these
    were not Pillow's.
    """
    for photo in photographs:
        photo = np.asarray(Image.fromarray(photo).resize((512, 512), Image.BICUBIC))
        np.testing.assert_allclose(
            levels(DeiTImageConverter(224), photo), pillow(photo, 224, 256), rtol=0, atol=0.01
        )


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("cover", [True, False])
@pytest.mark.parametrize("size", [(427, 640), (30, 20), (1, 1)])
def test_products_for_one_size_are_the_same_conversion(size, cover, interpolation, photographs):
    converter = DeiTImageConverter(
        (32, 48), interpolation=interpolation, crop_to_aspect_ratio=cover
    )
    photos = np.stack(photographs)[:, : size[0], : size[1]]
    difference = abs(levels(converter.for_size(*size), photos) - levels(converter, photos))
    # A value that stands between two levels may go either way.
    assert difference.max() < 1.01
    assert (difference > 0.01).mean() < 1e-3


def test_products_for_one_size_on_halves(rng):
    """Enlarged four times, many values are halves, and all of them go up."""
    converter = DeiTImageConverter(
        32, crop_ratio=1.0, mean=0.5, std=0.5, data_format="channels_first"
    )
    images = rng.integers(0, 256, (50, 1, 8, 8)).astype("uint8")
    np.testing.assert_array_equal(numpy(converter.for_size(8, 8)(images)), numpy(converter(images)))


def test_products_for_one_size_have_a_limit():
    with raises(
        "Images of 1 x 8192 pixels would be resized to 256 x 2097152 before the crop, and the "
        "limit is 16384. Crop them closer to the aspect ratio 224 x 224 first."
    ):
        DeiTImageConverter(224).for_size(1, 8192)


def test_names_itself_as_it_is_spelt():
    """Keras would say "dei_t_image_converter", as older files do."""
    layer = DeiTImageConverter(32)
    assert layer.name.startswith("deit_image_converter")
    assert DeiTImageConverter(32).name != layer.name
    old = {**layer.get_config(), "name": "dei_t_image_converter_1"}
    assert DeiTImageConverter.from_config(old).name == "dei_t_image_converter_1"


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("size", [(20, 30), (12, 32)])
def test_pixels_that_are_nan_stay_nan(interpolation, size, rng):
    """In whatever way it runs. Zero would be black, and nobody would notice."""
    import tensorflow as tf

    converter = DeiTImageConverter((12, 32), 1.0, interpolation, data_format="channels_last")
    images = rng.uniform(0, 255, (2, *size, 3)).astype("float32")
    images[0, 3:12, 9:24, 1] = np.nan
    inputs = keras.Input((*size, 3))
    for convert in (
        converter,
        converter.for_size(*size),
        lambda x: keras.Model(inputs, converter(inputs)).predict(x, verbose=0),
        lambda x: next(iter(tf.data.Dataset.from_tensors(x).map(converter))).numpy(),
    ):
        is_nan = np.isnan(numpy(convert(images)))
        assert is_nan[0, 6, 16, 1] and not is_nan[1].any()
