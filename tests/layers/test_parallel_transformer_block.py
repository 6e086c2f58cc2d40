import keras
import numpy as np
import pytest

from keras_deit.layers import ParallelTransformerBlock, RotaryPositionEmbedding, TransformerBlock
from keras_deit.visualization import attention_model
from tests import witness
from tests.examples.test_using import torchvision  # noqa: F401
from tests.helpers import numpy, randomize

pytestmark = pytest.mark.backend

HEADS, BRANCHES, TOKENS, DIM = 2, 3, 5, 8
MASK = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0]], "bool")


@pytest.fixture
def tokens(rng):
    return rng.normal(size=(3, TOKENS, DIM)).astype("float32")


def built(rng, num_branches=BRANCHES, **kwargs):
    block = ParallelTransformerBlock(
        HEADS, 12, num_branches, **{"layer_scale_init_value": 0.1, **kwargs}
    )
    block.build((None, TOKENS, DIM))
    return randomize(block, rng)


def branches_of(block):
    return [block, *(getattr(block, f"branch_{i}") for i in range(1, block.num_branches))]


def block_by_branches(x, weights):
    """(outputs, scores) in float64. The weights of the first branch have no prefix."""
    branches = [weights, *(witness.under(weights, f"branch_{i}") for i in range(1, BRANCHES))]
    attended = [
        witness.attention(
            witness.layer_norm(x, witness.under(branch, "attention_norm"), 1e-6),
            witness.under(branch, "attention"),
            HEADS,
        )
        for branch in branches
    ]
    x = x + sum(
        outputs * branch["attention_scale/gamma"]
        for (outputs, _), branch in zip(attended, branches)
    )
    x = x + sum(
        witness.mlp(
            witness.layer_norm(x, witness.under(branch, "mlp_norm"), 1e-6),
            witness.under(branch, "mlp"),
        )
        * branch["mlp_scale/gamma"]
        for branch in branches
    )
    return x, np.concatenate([scores for _, scores in attended], axis=1)


@pytest.mark.parametrize("num_queries", [None, 2])
def test_equals_the_formula(num_queries, tokens, rng):
    block = built(rng)
    expected, expected_scores = block_by_branches(
        tokens.astype("float64"), witness.weights_of(block)
    )
    outputs = block(tokens, num_queries=num_queries)
    again, scores = block(tokens, num_queries=num_queries, return_attention_scores=True)
    np.testing.assert_allclose(numpy(outputs), expected[:, :num_queries], atol=1e-4)
    np.testing.assert_allclose(numpy(again), expected[:, :num_queries], atol=1e-4)
    assert scores.shape[1] == BRANCHES * HEADS
    np.testing.assert_allclose(numpy(scores), expected_scores[:, :, :num_queries], atol=1e-5)


def test_one_branch_is_a_transformer_block(tokens, rng):
    block = built(rng, num_branches=1)
    twin = TransformerBlock(HEADS, 12, layer_scale_init_value=0.1)
    twin.build((None, TOKENS, DIM))
    twin.set_weights(block.get_weights())
    np.testing.assert_array_equal(numpy(block(tokens)), numpy(twin(tokens)))


def test_every_branch_has_the_arguments_of_the_block(rng):
    arguments = {
        "dropout_rate": 0.1,
        "attention_dropout_rate": 0.2,
        "drop_path_rate": 0.3,
        "layer_norm_epsilon": 1e-3,
        "use_qk_norm": True,
        "activation": "silu",
        "use_gated_mlp": True,
    }
    block = built(rng, **arguments)
    for branch in branches_of(block):
        config = branch.get_config()
        assert {name: config[name] for name in arguments} == arguments


def test_each_branch_drops_its_path_on_its_own(rng):
    """With LayerScale of 1 and equal weights, a sample's branches are its number of kept ones."""
    block = built(rng, num_branches=2, drop_path_rate=0.5)
    for branch in branches_of(block)[1:]:
        for own, other in zip(block.attention.weights, branch.attention.weights):
            other.assign(own)
        branch.attention_norm.set_weights(block.attention_norm.get_weights())
        branch.attention_scale.set_weights(block.attention_scale.get_weights())
    for branch in branches_of(block):
        branch.mlp_scale.gamma.assign(np.zeros(DIM))
    x = np.repeat(rng.normal(size=(1, TOKENS, DIM)).astype("float32"), 64, axis=0)
    # The branches at inference add 2 times the branch; in training 0, 2 or 4 times
    added = numpy(block(x)) - x
    shares = (numpy(block(x, training=True)) - x)[:, 0, 0] / added[:, 0, 0]
    assert {*np.round(shares, 3)} == {0.0, 1.0, 2.0}


def test_padding_changes_no_other_token(tokens, rng):
    block = built(rng)
    other = np.where(MASK[..., None], tokens, 7.0).astype("float32")
    found, expected = numpy(block(tokens, mask=MASK)), numpy(block(other, mask=MASK))
    np.testing.assert_allclose(found[MASK], expected[MASK], atol=1e-5)
    assert not np.allclose(found, numpy(block(tokens)))


def test_rotation_goes_to_every_branch(rng):
    """Branches of equal weights have equal scores."""
    block = built(rng, num_branches=2)
    block.branch_1.set_weights(block.get_weights()[: len(block.branch_1.weights)])
    x = rng.normal(size=(2, 1 + 4, DIM)).astype("float32")
    rotation = RotaryPositionEmbedding(DIM // HEADS)(np.zeros((2, 2, 2, 1), "float32"))
    _, scores = block(x, rotation=rotation, return_attention_scores=True)
    first, second = np.split(numpy(scores), 2, axis=1)
    np.testing.assert_allclose(first, second, atol=1e-6)
    _, scores = block(x, return_attention_scores=True)
    assert not np.allclose(numpy(scores)[:, :HEADS], first)


def test_remat_has_the_same_gradients(tokens, rng):
    results = []
    for remat in (False, True):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((TOKENS, DIM))
        block = ParallelTransformerBlock(HEADS, 12, drop_path_rate=0.5, remat=remat)
        model = keras.Model(inputs, block(inputs))
        randomize(model, np.random.default_rng(2))
        model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=False)
        model.train_on_batch(tokens, np.zeros_like(tokens))
        results.append(model.get_weights())
    for plain, recomputed in zip(*results):
        np.testing.assert_allclose(recomputed, plain, atol=1e-5)


def test_the_attention_model_shows_all_heads(tokens, rng):
    inputs = keras.Input((TOKENS, DIM))
    block = ParallelTransformerBlock(HEADS, 12, BRANCHES, name="block_0")
    model = keras.Model(inputs, block(inputs))
    scores = attention_model(model).predict(tokens, verbose=0)["attention_scores"]["block_0"]
    assert scores.shape == (3, BRANCHES * HEADS, TOKENS, TOKENS)
    np.testing.assert_allclose(scores.sum(axis=-1), 1.0, atol=1e-5)


def peer_weights(block):
    """The weights of a block by the names of timm."""
    weights = {}
    for index, branch in enumerate(branches_of(block)):
        attention, mlp = f"attns.{index}", f"ffns.{index}"
        for name, layer in {
            f"{attention}.norm": branch.attention_norm,
            f"{attention}.attn.qkv": branch.attention.qkv,
            f"{attention}.attn.proj": branch.attention.projection,
            f"{mlp}.norm": branch.mlp_norm,
            f"{mlp}.mlp.fc1": branch.mlp.intermediate,
            f"{mlp}.mlp.fc2": branch.mlp.projection,
        }.items():
            first, second = layer.get_weights()
            weights[f"{name}.weight"], weights[f"{name}.bias"] = first.T, second
        weights[f"{attention}.ls.gamma"] = numpy(branch.attention_scale.gamma)
        weights[f"{mlp}.ls.gamma"] = numpy(branch.mlp_scale.gamma)
    return weights


@pytest.mark.peer
@pytest.mark.parametrize("num_branches", [2, BRANCHES])
def test_equals_timm(num_branches, tokens, rng, torchvision):  # noqa: F811
    torch = pytest.importorskip("torch")
    vision_transformer = pytest.importorskip("timm.models.vision_transformer")
    block = built(rng, num_branches=num_branches)
    peer = vision_transformer.ParallelThingsBlock(
        DIM, HEADS, num_branches, mlp_ratio=1.5, qkv_bias=True, init_values=0.1
    ).eval()
    peer.load_state_dict(
        {name: torch.tensor(value.copy()) for name, value in peer_weights(block).items()}
    )
    with torch.no_grad():
        expected = peer(torch.tensor(tokens)).numpy()
    np.testing.assert_allclose(numpy(block(tokens)), expected, atol=1e-5)
