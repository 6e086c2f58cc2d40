import numpy as np
import pytest

from keras_deit.visualization import (
    enlarge,
    overlay,
    plot_filters,
    plot_images,
    plot_overlays,
    plot_position_similarity,
    plot_rollouts,
)
from tests.helpers import raises


def size(figure, path):
    """The (width, height) in pixels of a saved figure."""
    from PIL import Image

    figure.savefig(path, dpi=100)
    with Image.open(path) as picture:
        return picture.size


@pytest.mark.parametrize("channels", [1, 3])
def test_an_overlay_is_brightest_where_the_model_looks(channels):
    """The result has the size of the image, and rows and columns are not swapped."""
    shares = np.zeros((3, 4))
    shares[2, 1] = 0.1
    found = overlay(np.zeros((60, 120, channels)), shares)
    assert found.shape == (60, 120, 3)
    assert found.dtype == np.uint8
    row, column = np.unravel_index(found.sum(axis=-1).argmax(), (60, 120))
    assert 40 <= row < 60
    assert 30 <= column < 60
    bright = found.sum(axis=-1)
    assert bright[50, 45] > 3 * bright[10, 100]


def test_outside_the_box_the_image_stays_as_it_is(rng):
    image = rng.integers(0, 256, (50, 80, 3)).astype("uint8")
    before = image.copy()
    found = overlay(image, np.ones((2, 2)), box=(9.6, 20.2, 30.0, 40.0), strength=1.0)
    np.testing.assert_array_equal(image, before)
    outside = np.ones((50, 80), bool)
    outside[10:40, 20:60] = False
    np.testing.assert_array_equal(found[outside], image[outside])
    # Inside the box the map covers the image, and fades out over a twentieth of the box.
    assert len(np.unique(found[12:38, 22:58].reshape(-1, 3), axis=0)) == 1
    assert not np.array_equal(found[10:40, 20], found[10:40, 30])
    whole = overlay(image, np.ones((2, 2)), strength=1.0)
    # Nothing fades at the edge of the image.
    assert len(np.unique(whole.reshape(-1, 3), axis=0)) == 1


def test_attention_that_is_almost_even_is_drawn_so(rng):
    """If it used all colours, noise would look like a peak."""
    black, even = np.zeros((60, 60, 3)), 1 / 9 + rng.normal(0, 1e-4, (3, 3))
    assert np.ptp(overlay(black, even).astype(int), axis=(0, 1)).max() <= 1
    peak = np.full((3, 3), 1 / 90)
    peak[1, 1] = 1 - 8 / 90
    assert np.ptp(overlay(black, peak).astype(int), axis=(0, 1)).max() > 100
    # `largest` may come from another map.
    assert overlay(black, even, largest=1.0).sum() < overlay(black, even).sum()


def test_overlays_share_one_scale_and_show_it(rng, tmp_path):
    image, faint = rng.integers(0, 256, (30, 30, 3)).astype("uint8"), np.full((2, 3), 0.05)
    strong = np.array([[0.7, 0.0, 0.0], [0.0, 0.0, 0.0]])
    figure = plot_overlays([image] * 3, [None, faint, strong], ["image", "faint", "strong"])
    pictures = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    np.testing.assert_array_equal(pictures[0], image)
    np.testing.assert_array_equal(pictures[1], overlay(image, faint, largest=0.7))
    np.testing.assert_array_equal(pictures[2], overlay(image, strong))
    [bar] = [axis for axis in figure.axes if axis.get_ylabel() == "share of the attention"]
    assert bar.get_ylim() == pytest.approx((0, 0.7))
    size(figure, tmp_path / "overlays.png")


def test_a_map_of_nothing_and_an_image_of_one_pixel():
    assert overlay(np.zeros((1, 1, 3)), np.zeros((14, 14)), box=(0.0, 0.2, 1.0, 0.6)).shape == (
        1,
        1,
        3,
    )


def test_small_images_are_enlarged_in_whole_pixels(rng):
    image = rng.integers(0, 256, (10, 30, 3))
    found = enlarge(image, least=25)
    assert found.shape == (30, 90, 3)
    np.testing.assert_array_equal(found, np.kron(image, np.ones((3, 3, 1), int)))
    large = rng.integers(0, 256, (300, 256, 1))
    np.testing.assert_array_equal(enlarge(large), large)


def test_pictures_keep_their_aspect(rng, tmp_path):
    tall = [rng.integers(0, 256, (60, 20, 3)) for _ in range(3)]
    width, height = size(plot_images(tall, titles=["a", "b", "c"]), tmp_path / "tall.png")
    assert height > 2 * width / 3
    figure = plot_images([rng.integers(0, 256, (20, 60, 1))] * 5, columns=2)
    assert [axis.images[0].get_array().shape for axis in figure.axes if axis.images] == [
        (20, 60, 3)
    ] * 5
    width, height = size(figure, tmp_path / "wide.png")
    assert width > height


@pytest.mark.parametrize("channels", [1, 3])
def test_rollouts_of_a_batch(channels, rng, tmp_path):
    pictures = rng.integers(0, 256, (3, 12, 32, channels)).astype("uint8")
    figure = plot_rollouts(pictures, rng.random((3, 2, 3)), ["a", "b", "c"], columns=2)
    drawn = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert len(drawn) == 6
    np.testing.assert_array_equal(drawn[0][::22, ::22], np.broadcast_to(pictures[0], (12, 32, 3)))
    assert [axis.get_title() for axis in figure.axes if axis.get_title()] == ["a", "b", "c"]
    size(figure, tmp_path / "rollouts.png")


def test_filters_are_stretched_over_all_levels(rng, tmp_path):
    figure = plot_filters(
        rng.normal(size=(5, 4, 8, 3)) * [[[[1]]], [[[2]]], [[[1]]], [[[9]]], [[[1]]]], columns=3
    )
    drawn = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert [(image.min(), image.max()) for image in drawn] == [(0, 255)] * 5
    size(figure, tmp_path / "filters.png")
    with raises(
        "`filters` must have 1 or 3 channels, to be plotted in grey or colour. Select 1 or 3. "
        "Received: filters of shape (5, 4, 8, 2)"
    ):
        plot_filters(np.zeros((5, 4, 8, 2)))


def test_position_similarity_has_a_picture_for_each_patch(rng, tmp_path):
    figure = plot_position_similarity(rng.uniform(-1, 1, (3, 4, 3, 4)))
    assert len([axis for axis in figure.axes if axis.images]) == 12
    size(figure, tmp_path / "positions.png")


def test_errors():
    with raises(
        "An image must have the shape (height, width, channels), with 1 or 3 channels. Select one "
        "image of a batch. Received: an image of shape (4, 4)"
    ):
        overlay(np.zeros((4, 4)), np.zeros((2, 2)))
    with raises(
        "`shares` must have the shape (rows, columns). Select one image, and one head. Received: "
        "shares of shape (1, 2, 2)"
    ):
        overlay(np.zeros((4, 4, 3)), np.zeros((1, 2, 2)))
