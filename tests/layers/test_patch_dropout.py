import keras
import numpy as np
import pytest

from keras_deit.layers import PatchDropout
from tests.conftest import BACKEND
from tests.examples.test_using import torchvision  # noqa: F401
from tests.helpers import numpy, raises

pytestmark = pytest.mark.backend

PREFIX = 2


def numbered(batch, count):
    """Tokens whose values say which they are: (B, T, 3), all values of token i are i."""
    tokens = np.broadcast_to(np.arange(count, dtype="float32")[None, :, None], (batch, count, 3))
    return tokens.copy()


def kept(outputs):
    """Which tokens were kept, (B, kept)."""
    outputs = numpy(outputs)
    np.testing.assert_array_equal(outputs, np.repeat(outputs[..., :1], 3, axis=-1))
    return outputs[..., 0].astype(int)


def test_keeps_the_prefix_and_different_patches_in_their_order():
    tokens = kept(PatchDropout(0.5, PREFIX, seed=3)(numbered(64, PREFIX + 9), training=True))
    assert tokens.shape == (64, PREFIX + 4)
    np.testing.assert_array_equal(tokens[:, :PREFIX], [[0, 1]] * 64)
    patches = tokens[:, PREFIX:]
    assert (patches >= PREFIX).all()
    assert (np.diff(patches, axis=1) > 0).all()
    # One decision for each image
    assert len({tuple(row) for row in patches}) > 32


def test_every_patch_is_kept_as_often_as_any_other():
    """Within 4 sigma at a fixed seed."""
    batch, count, rate = 4000, 8, 0.25
    tokens = kept(PatchDropout(rate, 0, seed=3)(numbered(batch, count), training=True))
    frequencies = np.bincount(tokens.ravel(), minlength=count) / batch
    assert tokens.shape == (batch, 6)
    assert (abs(frequencies - 0.75) < 4 * np.sqrt(0.75 * 0.25 / batch)).all()


# (rate, patches): int(10 * (1 - 0.9)) is 0, and int(10 * (1 - 0.8)) is 1 in floating point
COUNTS = [(0.5, 9), (0.9, 10), (0.8, 10), (0.25, 7), (0.75, 196), (0.999, 5), (0.1, 1), (0.5, 0)]


@pytest.mark.parametrize(("rate", "count"), COUNTS)
def test_the_number_of_kept_patches(rate, count):
    outputs = PatchDropout(rate, PREFIX)(numbered(3, PREFIX + count), training=True)
    expected = min(count, max(1, int(count * (1 - rate))))
    assert outputs.shape == (3, PREFIX + expected, 3)


@pytest.mark.peer
@pytest.mark.parametrize(("rate", "count"), COUNTS)
def test_timm_keeps_as_many(rate, count, torchvision):  # noqa: F811
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("timm.layers").PatchDropout(rate, PREFIX).train()
    tokens = numbered(3, PREFIX + count)
    outputs = PatchDropout(rate, PREFIX)(tokens, training=True)
    assert tuple(outputs.shape) == tuple(peer(torch.tensor(tokens)).shape)


@pytest.mark.parametrize("training", [False, None])
def test_inference_and_a_rate_of_0_change_nothing(training):
    tokens = numbered(3, 7)
    np.testing.assert_array_equal(numpy(PatchDropout(0.5)(tokens, training=training)), tokens)
    np.testing.assert_array_equal(numpy(PatchDropout(0)(tokens, training=True)), tokens)
    assert PatchDropout(0)(keras.Input((7, 3))).shape == (None, 7, 3)
    assert PatchDropout(0.5)(keras.Input((7, 3))).shape == (None, None, 3)


def test_repeats_its_choices_with_its_seed():
    tokens = numbered(16, 12)
    first, second = PatchDropout(0.5, seed=9), PatchDropout(0.5, seed=9)
    choices = []
    for _ in range(2):
        outputs = kept(first(tokens, training=True))
        np.testing.assert_array_equal(outputs, kept(second(tokens, training=True)))
        choices.append(outputs)
    assert not np.array_equal(*choices)


def test_gradients_go_to_what_was_kept(rng):
    """A linear layer in front learns from the kept tokens alone."""
    inputs = keras.Input((9, 3))
    positions = keras.layers.EinsumDense("btd,tde->bte", output_shape=(9, 1))
    outputs = PatchDropout(0.5, 1, seed=1)(positions(inputs))
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(outputs))
    model.compile(
        keras.optimizers.SGD(1.0), "mse", jit_compile=BACKEND != "torch", run_eagerly=False
    )
    before = numpy(positions.kernel).copy()
    x = rng.normal(size=(1, 9, 3)).astype("float32")
    model.train_on_batch(x, np.ones((1, 1)))
    changed = (numpy(positions.kernel) != before).any(axis=(1, 2))
    assert changed[0]
    assert changed[1:].sum() == 4


@pytest.mark.skipif(BACKEND != "tensorflow", reason="other backends know the sizes of a step")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_graph_that_does_not_know_the_number_of_tokens(jit_compile):
    import tensorflow as tf

    layer = PatchDropout(0.5, PREFIX, seed=3)
    layer.build((None, None, 3))
    call = tf.function(
        lambda tokens: layer(tokens, training=True),
        input_signature=[tf.TensorSpec((None, None, 3))],
        jit_compile=jit_compile,
    )
    for count in (9, 12):
        tokens = kept(call(numbered(4, PREFIX + count)))
        assert tokens.shape == (4, PREFIX + count // 2)
        assert (np.diff(tokens, axis=1) > 0).all()


def test_refuses_a_mask():
    layer = PatchDropout(0.5)
    text = (
        "`PatchDropout` takes no mask, because Keras could not pass it on to the kept tokens. Use "
        "inputs without padding."
    )
    with pytest.raises(ValueError, match=text):
        layer(keras.layers.Masking()(numbered(2, 5)))
    with pytest.raises(ValueError, match=text):
        layer(keras.layers.Masking()(keras.Input((5, 3))))


def test_errors():
    with raises(
        "`num_prefix_tokens` must be a non-negative integer. Received: num_prefix_tokens=-1"
    ):
        PatchDropout(0.5, num_prefix_tokens=-1)
