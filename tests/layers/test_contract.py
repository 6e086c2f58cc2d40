"""What every public layer keeps, one declarative case each."""

import inspect
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_deit
from keras_deit import layers
from tests.conftest import BACKEND
from tests.helpers import numpy, randomize, same_arrays

pytestmark = pytest.mark.backend

TOKENS = (5, 8)
CASES = {
    "patch_embedding": (layers.PatchEmbedding, {"hidden_dim": 8, "patch_size": (2, 4)}, (6, 8, 3)),
    "patch_embedding_channels_first": (
        layers.PatchEmbedding,
        {"hidden_dim": 8, "patch_size": 2, "data_format": "channels_first"},
        (3, 6, 8),
    ),
    "patch_embedding_map": (
        layers.PatchEmbedding,
        {"hidden_dim": 8, "patch_size": (2, 4), "flatten": False},
        (6, 8, 3),
    ),
    "patch_embedding_padded": (
        layers.PatchEmbedding,
        {"hidden_dim": 8, "patch_size": (2, 4), "pad_images": True},
        (5, 9, 3),
    ),
    "hmlp_stem": (layers.HMLPStem, {"hidden_dim": 8, "data_format": "channels_last"}, (16, 32, 3)),
    "hmlp_stem_channels_first": (
        layers.HMLPStem,
        {"hidden_dim": 8, "patch_size": 8, "data_format": "channels_first"},
        (3, 16, 24),
    ),
    "token_position_embedding": (
        layers.TokenPositionEmbedding,
        {"num_prefix_tokens": 2, "grid_size": (1, 5), "dropout_rate": 0.5},
        TOKENS,
    ),
    "token_position_embedding_patches": (
        layers.TokenPositionEmbedding,
        {"num_prefix_tokens": 1, "grid_size": (5, 1), "position_scope": "patches"},
        TOKENS,
    ),
    "token_position_embedding_without_positions": (
        layers.TokenPositionEmbedding,
        {"num_prefix_tokens": 2, "grid_size": (5, 1), "position_scope": "none"},
        TOKENS,
    ),
    "token_position_embedding_bare": (
        layers.TokenPositionEmbedding,
        {"num_prefix_tokens": 0, "grid_size": (5, 1)},
        TOKENS,
    ),
    "token_position_embedding_map": (
        layers.TokenPositionEmbedding,
        {"num_prefix_tokens": 2, "grid_size": (2, 3), "dropout_rate": 0.5},
        (4, 3, 8),
    ),
    "token_position_embedding_map_patches": (
        layers.TokenPositionEmbedding,
        {"num_prefix_tokens": 0, "grid_size": (3, 2), "position_scope": "patches"},
        (2, 2, 8),
    ),
    "attention": (
        layers.MultiHeadSelfAttention,
        {"num_heads": 2, "dropout_rate": 0.5, "attention_dropout_rate": 0.5},
        TOKENS,
    ),
    "attention_without_bias": (
        layers.MultiHeadSelfAttention,
        {"num_heads": 2, "use_bias": False},
        TOKENS,
    ),
    "attention_with_qk_norm": (
        layers.MultiHeadSelfAttention,
        {"num_heads": 2, "use_qk_norm": True, "layer_norm_epsilon": 1e-5},
        TOKENS,
    ),
    "attention_pooling": (
        layers.AttentionPooling,
        {"num_heads": 2, "intermediate_dim": 12, "layer_norm_epsilon": 1e-5},
        TOKENS,
    ),
    "mlp": (layers.MLP, {"intermediate_dim": 12, "dropout_rate": 0.5}, TOKENS),
    "mlp_relu": (layers.MLP, {"intermediate_dim": 12, "activation": "relu"}, TOKENS),
    "mlp_with_gate": (
        layers.MLP,
        {"intermediate_dim": 12, "activation": "silu", "use_gate": True},
        TOKENS,
    ),
    "layer_scale": (layers.LayerScale, {"init_value": 0.5}, TOKENS),
    "drop_path": (layers.DropPath, {"rate": 0.5}, TOKENS),
    "patch_dropout": (layers.PatchDropout, {"rate": 0.5, "num_prefix_tokens": 2}, TOKENS),
    "block": (layers.TransformerBlock, {"num_heads": 2, "intermediate_dim": 12}, TOKENS),
    "block_with_all": (
        layers.TransformerBlock,
        {
            "num_heads": 2,
            "intermediate_dim": 12,
            "dropout_rate": 0.5,
            "attention_dropout_rate": 0.5,
            "drop_path_rate": 0.5,
            "layer_scale_init_value": 0.1,
            "layer_norm_epsilon": 1e-5,
            "use_qk_norm": True,
            "activation": layers.gelu_tanh,
            "use_gated_mlp": True,
        },
        TOKENS,
    ),
    "rotary_position_embedding": (
        layers.RotaryPositionEmbedding,
        {"head_dim": 8, "num_prefix_tokens": 2, "base": 10.0},
        (2, 3, 5),
    ),
    "token_merging": (
        layers.TokenMerging,
        {"num_merged_tokens": 1, "num_prefix_tokens": 2},
        TOKENS,
    ),
    "merging_block": (
        layers.MergingTransformerBlock,
        {"num_heads": 2, "intermediate_dim": 12, "num_merged_tokens": 2, "num_prefix_tokens": 1},
        TOKENS,
    ),
    "selecting_block": (
        layers.SelectingTransformerBlock,
        {
            "num_heads": 2,
            "intermediate_dim": 12,
            "keep_rate": 0.4,
            "num_prefix_tokens": 1,
            "drop_path_rate": 0.5,
        },
        TOKENS,
    ),
    "simple_feature_pyramid": (
        layers.SimpleFeaturePyramid,
        {"hidden_dim": 6, "layer_norm_epsilon": 1e-5, "data_format": "channels_last"},
        (3, 2, 8),
    ),
    "simple_feature_pyramid_channels_first": (
        layers.SimpleFeaturePyramid,
        {
            "hidden_dim": 6,
            "levels": ("P1", "P3"),
            "input_level": "P2",
            "data_format": "channels_first",
        },
        (8, 3, 2),
    ),
    "parallel_block": (
        layers.ParallelTransformerBlock,
        {
            "num_heads": 2,
            "intermediate_dim": 12,
            "num_branches": 3,
            "dropout_rate": 0.5,
            "attention_dropout_rate": 0.5,
            "drop_path_rate": 0.5,
            "layer_scale_init_value": 0.1,
            "layer_norm_epsilon": 1e-5,
        },
        TOKENS,
    ),
    "distillation_head": (layers.DistillationHead, {"num_classes": 3}, TOKENS),
}
RANDOM = [name for name, (_, kwargs, _) in CASES.items() if any("rate" in key for key in kwargs)]
WITHOUT_WEIGHTS = ("drop_path", "patch_dropout", "rotary_position_embedding", "token_merging")
TRAINABLE = [name for name in CASES if name not in WITHOUT_WEIGHTS]
# Its result is the same for every image, and has no batch axis.
FOR_EVERY_IMAGE = layers.RotaryPositionEmbedding


QUANTIZED = [
    name
    for name in TRAINABLE
    if not name.startswith(("layer_scale", "token_position_embedding"))  # without a `Dense`
]


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def make(case, **kwargs):
    cls, arguments, shape = case
    return cls(**arguments, **kwargs), shape


def inputs_for(shape, rng, batch=3):
    return rng.normal(size=(batch, *shape)).astype("float32")


def test_every_public_layer_is_here():
    public = {
        getattr(layers, name) for name in layers.__all__ if inspect.isclass(getattr(layers, name))
    }
    # The converter has no weights and takes raw images: test_deit_image_converter.py holds it.
    # The selection takes two tensors: test_token_selection.py does.
    elsewhere = {layers.DeiTImageConverter, layers.TokenSelection}
    assert {cls for cls, _, _ in CASES.values()} == public - elsewhere


@pytest.mark.parametrize("name", [name for name in layers.__all__ if name != "target_platform"])
def test_is_registered_and_documented(name):
    public = getattr(layers, name)
    assert keras.saving.get_registered_name(public) == f"keras_deit>{name}"
    assert public.__doc__ and "Reference" in public.__doc__


def test_config_is_the_arguments(case):
    layer, _ = make(case)
    classes = [cls for cls in type(layer).__mro__ if cls.__module__.startswith("keras_deit.")]
    arguments = {name for cls in classes for name in inspect.signature(cls.__init__).parameters} - {
        "self",
        "kwargs",
    }
    assert set(layer.get_config()) == arguments | {"name", "trainable", "dtype"}


def test_config_round_trip_before_and_after_build(case, rng):
    layer, shape = make(case, name="mine", dtype="mixed_bfloat16")
    for _ in range(2):
        config = json.loads(json.dumps(layer.get_config()))
        twin = type(layer).from_config(config)
        assert json.loads(json.dumps(twin.get_config())) == config
        assert twin.dtype_policy.name == "mixed_bfloat16"
        layer(inputs_for(shape, rng))


def test_builds_by_shape_by_symbol_and_by_value_alike(case, rng):
    (by_shape, shape), (by_symbol, _), (by_value, _) = make(case), make(case), make(case)
    x = inputs_for(shape, rng)
    by_shape.build((None, *shape))
    symbol = by_symbol(keras.Input(shape))
    value = by_value(x)
    assert [tuple(v.shape) for v in by_shape.weights] == [tuple(v.shape) for v in by_value.weights]
    assert [tuple(v.shape) for v in by_symbol.weights] == [tuple(v.shape) for v in by_value.weights]
    batch = 2 if isinstance(by_shape, FOR_EVERY_IMAGE) else None
    for symbolic, eager in zip(keras.tree.flatten(symbol), keras.tree.flatten(value)):
        assert symbolic.shape[0] == batch
        assert tuple(symbolic.shape[1:]) == promised(by_symbol, eager)[1:]
    expected = by_shape.compute_output_shape((3, *shape))
    if isinstance(expected, dict):
        expected = [expected[name] for name in sorted(expected)]
    expected = expected if isinstance(expected[0], tuple) else (expected,)
    assert [promised(by_value, part) for part in keras.tree.flatten(value)] == list(expected)


def promised(layer, output):
    """The shape of an output, without what depends on `training`."""
    batch, *sizes = output.shape
    if isinstance(layer, layers.PatchDropout):
        sizes[0] = None
    return (batch, *sizes)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][0] != FOR_EVERY_IMAGE])
def test_one_batch_of_three_is_three_batches_of_one(name, rng):
    layer, shape = make(CASES[name])
    x = inputs_for(shape, rng)
    randomize_built(layer, x, rng)
    together = keras.tree.flatten(layer(x))
    alone = [keras.tree.flatten(layer(x[i : i + 1])) for i in range(3)]
    for part, parts in zip(together, zip(*alone)):
        np.testing.assert_allclose(
            numpy(part), np.concatenate([numpy(p) for p in parts]), atol=1e-5
        )


@pytest.mark.parametrize("name", RANDOM)
def test_randomness_is_for_training_alone_and_follows_the_seed(name, rng):
    outputs = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        layer, shape = make(CASES[name])
        x = inputs_for(shape, np.random.default_rng(2), batch=32)
        outputs.append(
            (layer(x), layer(x, training=False), layer(x, training=True), layer(x, training=True))
        )
    default, inference, training, next_training = outputs[0]
    same_arrays(default, inference)
    assert not np.array_equal(numpy(training), numpy(inference))
    assert not np.array_equal(numpy(training), numpy(next_training))
    same_arrays(outputs[0], outputs[1])


@pytest.mark.parametrize("name", TRAINABLE)
def test_every_weight_gets_a_gradient(name, rng):
    layer, shape = make(CASES[name])
    assert_trains(
        functional(layer, shape),
        layer,
        shape,
        rng,
        run_eagerly=BACKEND != "jax",
        jit_compile=BACKEND == "jax",
    )


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_layer_frozen_by_its_constructor_is_frozen_in_a_model(name):
    """Sub-layers used to train on."""
    layer, shape = make(CASES[name], trainable=False)
    model = functional(layer, shape)
    assert model.trainable_variables == model.layers[-1].trainable_variables
    assert len(model.non_trainable_weights) == len(layer.weights) > 0


def deit_stack(x):
    for layer in (
        layers.PatchEmbedding(8, (8, 4)),
        layers.TokenPositionEmbedding(2, (2, 8), dropout_rate=0.1),
        layers.PatchDropout(0.5, 2),
        layers.MultiHeadSelfAttention(2, dropout_rate=0.1, attention_dropout_rate=0.1),
        layers.MLP(12, dropout_rate=0.1),
        layers.LayerScale(0.5),
        layers.DropPath(0.1),
        layers.TransformerBlock(2, 12, 0.1, 0.1, 0.1, layer_scale_init_value=0.5),
        layers.DistillationHead(3),
    ):
        x = layer(x)
    return x


def other_stack(x):
    tokens = layers.HMLPStem(8, 8)(x)
    tokens = layers.ParallelTransformerBlock(2, 12, drop_path_rate=0.1)(tokens)
    feature_map = keras.layers.Reshape((2, 4, 8))(tokens)
    levels = layers.SimpleFeaturePyramid(4)(feature_map).values()
    pooled = [keras.layers.GlobalAveragePooling2D()(level) for level in levels]
    return [layers.AttentionPooling(2, 12)(tokens), *pooled]


@pytest.mark.parametrize(
    "policy",
    [
        "mixed_bfloat16",
        *(
            pytest.param(p, marks=pytest.mark.slow)
            for p in ("float32", "mixed_float16", "bfloat16")
        ),
    ],
)
@pytest.mark.parametrize("stack", [deit_stack, pytest.param(other_stack, marks=pytest.mark.slow)])
def test_a_compiled_training_step_is_finite_under_every_policy(stack, policy, rng):
    """Many layers in one model: a compilation each would take minutes."""
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input((16, 32, 3))
    outputs = keras.layers.Concatenate()(stack(inputs))
    # Random weights: at 0.02 a chain without residual connections fades to nothing.
    model = randomize(keras.Model(inputs, outputs), rng)
    # A warning that compilation fell back would be an error: setup.cfg.
    assert_trains(model, model, (16, 32, 3), rng, jit_compile=BACKEND != "torch")


def assert_trains(model, layer, shape, rng, **options):
    x, y = (
        inputs_for(shape, rng, batch=16),
        rng.normal(size=(16, *model.output_shape[1:])).astype("float32"),
    )
    before = [numpy(v) for v in layer.trainable_variables]
    assert before
    # A rate large enough to show in bfloat16's 8 bits.
    model.compile(keras.optimizers.SGD(10.0), "mse", **options)
    assert np.isfinite(model.train_on_batch(x, y))
    for variable, old in zip(layer.trainable_variables, before):
        new = numpy(variable)
        assert np.isfinite(new.astype("float32")).all()
        assert not np.array_equal(new, old), f"{variable.path} got no gradient"


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="mobile delegates run what TensorFlow's graph shows"
)
def test_tensors_inside_stay_at_rank_4(case):
    import tensorflow as tf

    layer, shape = make(case)
    layer.build((None, *shape))
    graph = tf.function(layer).get_concrete_function(tf.TensorSpec((None, *shape))).graph
    outputs = [tensor for operation in graph.get_operations() for tensor in operation.outputs]
    ranks = [tensor.shape.rank for tensor in outputs if tensor.shape.rank is not None]
    assert 2 <= max(ranks) <= 4


def functional(layer, shape):
    """A user's own model of our layer and Keras' layers, with one output."""
    inputs = keras.Input(shape)
    x = layer(inputs)
    if isinstance(layer, FOR_EVERY_IMAGE):
        x = keras.layers.Flatten()(inputs)[:, :1] + keras.ops.reshape(x, (1, -1))
    parts = [
        keras.layers.GlobalAveragePooling1D()(part)
        if None in part.shape[1:]  # the number of tokens depends on `training`
        else keras.layers.Flatten()(part)
        for part in keras.tree.flatten(x)
    ]
    x = parts[0] if len(parts) == 1 else keras.layers.Concatenate()(parts)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def randomize_built(layer, x, rng):
    layer(x)
    return randomize(layer, rng)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
@pytest.mark.parametrize("name", QUANTIZED)
def test_int8_saves_and_loads(name, rng, tmp_path):
    layer, shape = make(CASES[name])
    model, x = randomize(functional(layer, shape), rng), inputs_for(shape, rng)
    before = numpy(model(x))
    model.quantize("int8")
    assert any("int8" in str(weight.dtype) for weight in layer.weights)
    after = numpy(model(x))
    assert 0 < abs(after - before).max() < 0.1 * abs(before).max() + 0.2
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        numpy(keras.saving.load_model(tmp_path / "model.keras")(x)), after
    )


@pytest.mark.process
def test_saved_models_load_bit_equal_in_a_process_with_keras_deit_alone(tmp_path, rng):
    for name in CASES:
        layer, shape = make(CASES[name], name=name)
        model, x = functional(layer, shape), inputs_for(shape, rng)
        model.save(tmp_path / f"{name}.keras")
        np.savez(tmp_path / f"{name}.npz", x=x, y=numpy(model.predict(x, verbose=0)))
    script = """
import pathlib, sys
import keras, numpy as np
import keras_deit
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.keras")):
    data = np.load(file.with_suffix(".npz"))
    outputs = keras.saving.load_model(file).predict(data["x"], verbose=0)
    assert np.array_equal(outputs, data["y"]), f"{file.stem}: {abs(outputs - data['y']).max()}"
    print(file.stem)
"""
    root = os.path.dirname(os.path.dirname(keras_deit.__file__))
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == sorted(CASES)
