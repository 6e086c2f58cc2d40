import math

import keras
import numpy as np
import pytest

from keras_deit.layers import AttentionPooling
from tests import witness
from tests.examples.test_using import torchvision  # noqa: F401
from tests.helpers import numpy, randomize

pytestmark = pytest.mark.backend

HEADS, TOKENS, DIM = 2, 5, 8
MASK = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0]], "bool")


@pytest.fixture
def tokens(rng):
    return rng.normal(size=(3, TOKENS, DIM)).astype("float32")


@pytest.fixture
def pooling(rng):
    layer = AttentionPooling(HEADS, 12)
    layer.build((None, TOKENS, DIM))
    return randomize(layer, rng)


def pooled_one_by_one(tokens, weights):
    """The formula for one sample, head by head, in float64."""
    query = witness.dense(weights["latent"], witness.under(weights, "query"))[0]
    key, value = np.split(witness.dense(tokens, witness.under(weights, "key_value")), 2, axis=-1)
    heads = []
    for part in np.split(np.arange(DIM), HEADS):
        scores = witness.softmax(key[:, part] @ query[part] / math.sqrt(DIM // HEADS))
        heads.append(scores @ value[:, part])
    x = witness.dense(np.concatenate(heads), witness.under(weights, "projection"))
    return x + witness.mlp(
        witness.layer_norm(x, witness.under(weights, "norm"), 1e-6), witness.under(weights, "mlp")
    )


def test_equals_the_formula(pooling, tokens):
    weights = witness.weights_of(pooling)
    expected = [pooled_one_by_one(sample, weights) for sample in tokens.astype("float64")]
    np.testing.assert_allclose(numpy(pooling(tokens)), expected, atol=1e-5)


def test_padding_is_as_if_it_were_not_there(pooling, tokens):
    weights = witness.weights_of(pooling)
    expected = [
        pooled_one_by_one(sample[keep], weights)
        for sample, keep in zip(tokens.astype("float64"), MASK)
    ]
    np.testing.assert_allclose(numpy(pooling(tokens, mask=MASK)), expected, atol=1e-5)
    # The mask that comes with the inputs
    inputs = keras.Input((TOKENS, DIM))
    pooled = pooling(keras.layers.Masking()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(DIM, name="head")(pooled))
    model.get_layer("head").set_weights([np.eye(DIM), np.zeros(DIM)])
    found = model.predict(tokens * MASK[..., None], verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert pooling.compute_mask(tokens, MASK) is None


def test_the_order_of_tokens_does_not_matter(pooling, tokens):
    np.testing.assert_allclose(
        numpy(pooling(tokens[:, ::-1].copy())), numpy(pooling(tokens)), atol=1e-5
    )


def test_what_is_no_padding_mask(pooling, tokens):
    with pytest.raises(ValueError) as caught:
        pooling(tokens, mask=MASK[:, :4])
    assert (
        "`mask` of `AttentionPooling` must be a padding mask of shape (batch, tokens): a bool for "
        "each token, `True` to attend to it. Received: mask=of shape (3, 4), input shape (3, 5, 8)"
    ) in str(caught.value)


@pytest.mark.peer
def test_equals_timm(pooling, tokens, torchvision):  # noqa: F811
    torch = pytest.importorskip("torch")
    timm_layers = pytest.importorskip("timm.layers")
    peer = timm_layers.AttentionPoolLatent(
        DIM,
        num_heads=HEADS,
        mlp_ratio=1.5,
        norm_layer=lambda dim, **kwargs: torch.nn.LayerNorm(dim, eps=1e-6, **kwargs),
    ).eval()
    ours = {
        "latent": pooling.latent[None],
        "q.weight": keras.ops.transpose(pooling.query.kernel),
        "q.bias": pooling.query.bias,
        "kv.weight": keras.ops.transpose(pooling.key_value.kernel),
        "kv.bias": pooling.key_value.bias,
        "proj.weight": keras.ops.transpose(pooling.projection.kernel),
        "proj.bias": pooling.projection.bias,
        "norm.weight": pooling.norm.gamma,
        "norm.bias": pooling.norm.beta,
        "mlp.fc1.weight": keras.ops.transpose(pooling.mlp.intermediate.kernel),
        "mlp.fc1.bias": pooling.mlp.intermediate.bias,
        "mlp.fc2.weight": keras.ops.transpose(pooling.mlp.projection.kernel),
        "mlp.fc2.bias": pooling.mlp.projection.bias,
    }
    peer.load_state_dict({name: torch.tensor(numpy(value)) for name, value in ours.items()})
    with torch.no_grad():
        expected = peer(torch.tensor(tokens)).numpy()
    np.testing.assert_allclose(numpy(pooling(tokens)), expected, atol=1e-5)
