"""What depends on the device: chosen by the one that a computation is for, and the same numbers for
all.
"""

import contextlib
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_deit import layers
from keras_deit.layers import kernels, target_platform
from tests.conftest import BACKEND
from tests.helpers import images, numpy, raises, randomize, tiny_backbone

pytestmark = pytest.mark.backend

jax_alone = pytest.mark.skipif(
    BACKEND != "jax", reason="JAX is the backend whose forms depend on the device; CI runs it"
)


def block_on(platform, x, **options):
    """A block's outputs, traced as for a platform."""
    layer = layers.TransformerBlock(2, 12)
    layer.build(x.shape)
    randomize(layer, np.random.default_rng(3))
    with target_platform(platform) if platform else contextlib.nullcontext():
        return keras.tree.map_structure(numpy, layer(x, **options))


@pytest.mark.parametrize("platform", kernels.PLATFORMS)
@pytest.mark.parametrize("options", [{}, {"return_attention_scores": True}, {"num_queries": 2}])
def test_the_numbers_do_not_depend_on_the_platform(platform, options, rng):
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    for found, expected in zip(
        keras.tree.flatten(block_on(platform, x, **options)),
        keras.tree.flatten(block_on(None, x, **options)),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("merged", [0, 2])
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_a_backbone_on_another_platform(platform, merged, rng):
    backbone = randomize(tiny_backbone(num_merged_tokens=merged), rng)
    x = images(rng)
    expected = numpy(backbone(x))
    with target_platform(platform):
        np.testing.assert_allclose(numpy(backbone(x)), expected, atol=1e-4)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_lora_and_quantization_of_the_fused_product(platform, rng):
    """On an accelerator its kernel is used without calling the layer: what was added to the layer
    must count.
    """
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    layer = layers.MultiHeadSelfAttention(2)
    layer.build(x.shape)
    randomize(layer, rng)
    plain = numpy(layer(x))
    layer.qkv.enable_lora(2)
    randomize(layer, rng)
    adapted = numpy(layer(x))
    assert abs(adapted - plain).max() > 0.1
    with target_platform(platform):
        np.testing.assert_allclose(numpy(layer(x)), adapted, atol=1e-4)
    if BACKEND == "torch":
        return  # no int8 product on its CPU; its forms are the same on all devices
    quantized = layers.MultiHeadSelfAttention(2)
    quantized.build(x.shape)
    randomize(quantized, rng)
    quantized.qkv.quantize("int8")
    expected = numpy(quantized(x))
    with target_platform(platform):
        np.testing.assert_allclose(numpy(quantized(x)), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("mean", [0, 3, 30, 100])
@jax_alone
def test_layer_norm_in_one_pass_is_as_exact_as_keras_layer(mean, dtype, rng):
    """In half precision; beyond 100 standard deviations bfloat16 itself rounds the inputs to whole
    ones.
    """
    x = ops.cast(rng.normal(mean, 1.0, size=(64, 384)), dtype)
    # Shows what is there before the rounding
    layer = keras.layers.LayerNormalization(epsilon=1e-6, dtype="float32")
    expected = keras.ops.convert_to_numpy(ops.cast(x, "float32")).astype("float64")
    layer.build(expected.shape)
    expected -= expected.mean(axis=-1, keepdims=True)
    expected /= np.sqrt((expected**2).mean(axis=-1, keepdims=True) + 1e-6)
    with target_platform("tpu"):
        error = abs(numpy(kernels.layer_norm(layer, x)) - expected).max()
    if mean <= 3:
        assert error <= 1e-5
    assert error <= 2.0**-8 * abs(expected).max()  # what rounding the result to bfloat16 may cost
    if dtype == "bfloat16":
        assert error <= abs(numpy(layer(x)) - expected).max()


@pytest.mark.parametrize("platform", kernels.PLATFORMS)
def test_layer_norm_of_float32_is_keras_layer(platform, rng):
    x = rng.normal(1000.0, 1.0, size=(64, 384)).astype("float32")
    layer = keras.layers.LayerNormalization(epsilon=1e-6)
    expected = numpy(layer(x))
    with target_platform(platform):
        np.testing.assert_array_equal(
            numpy(kernels.layer_norm(layer, ops.convert_to_tensor(x))), expected
        )


@jax_alone
@pytest.mark.parametrize("platform", kernels.PLATFORMS)
@pytest.mark.parametrize("num_queries", [None, 3])
def test_norms_of_queries_and_keys_are_the_same_on_every_device(platform, num_queries, rng):
    x = rng.normal(size=(2, 5, 24)).astype("float32")
    layer = layers.MultiHeadSelfAttention(3, use_qk_norm=True)
    layer.build(x.shape)
    randomize(layer, rng)
    half = layers.MultiHeadSelfAttention(3, use_qk_norm=True, dtype="mixed_bfloat16")
    half.build(x.shape)
    half.set_weights(layer.get_weights())
    expected = [numpy(part) for part in layer.heads(x, num_queries=num_queries)]
    with target_platform(platform):
        found = half.heads(ops.cast(x, "bfloat16"), num_queries=num_queries)
    for part, wanted in zip(found, expected):
        assert part.shape == wanted.shape
        # Of a norm of 8 values, bfloat16 keeps 8 bits before and after.
        np.testing.assert_allclose(
            numpy(ops.cast(part, "float32")), wanted, atol=0.03 * abs(wanted).max()
        )


def asked_of_keras(monkeypatch, platform, x, **options):
    """The options that `ops.dot_product_attention` gets."""
    asked = []
    inner = ops.dot_product_attention

    def fake(query, key, value, **kwargs):
        asked.append(kwargs)
        return inner(query, key, value, **{**kwargs, "flash_attention": False})

    monkeypatch.setattr(ops, "dot_product_attention", fake)
    block_on(platform, x, **options)
    return asked


@jax_alone
@pytest.mark.parametrize("training", [False, True])
def test_some_images_at_a_time_are_the_same_attention(training, monkeypatch, rng):
    """Where the scores of all images do not fit on a TPU's chip together; the gradient, too."""
    import jax

    x = rng.normal(size=(6, 5, 8)).astype("float32")
    layer = layers.MultiHeadSelfAttention(2)
    layer.build(x.shape)
    randomize(layer, rng)
    weights = [variable.value for variable in layer.trainable_variables]

    def loss(weights, x):
        outputs, _ = layer.stateless_call(weights, [], x, training=training)
        return (outputs**2).sum(), outputs

    compute = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    expected = compute(weights, x)
    asked = []
    attention = kernels.attention
    monkeypatch.setattr(
        kernels, "attention", lambda *args: (asked.append(args[0].shape[0]), attention(*args))[1]
    )
    for images_at_a_time, images_of_scores in ((6, 6), (2, 2), (3, 4), (1, 0.5)):
        monkeypatch.setattr(kernels, "ALL_SCORES", images_of_scores * 4 * 2 * 5 * 5)
        monkeypatch.setattr(kernels, "SCORES_AT_A_TIME", images_of_scores * 4 * 2 * 5 * 5)
        with target_platform("tpu"):
            for found, wanted in zip(
                jax.tree.leaves(compute(weights, x)), jax.tree.leaves(expected)
            ):
                np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=1e-4)
        assert set(asked) == {images_at_a_time}
        asked.clear()


@jax_alone
def test_chunks_have_images_of_each_device(monkeypatch):
    """No image moves to another device, whether Keras knows how they are split or not."""
    monkeypatch.setattr(kernels, "ALL_SCORES", 4 * 2 * 5 * 5)  # those of one image
    monkeypatch.setattr(kernels, "SCORES_AT_A_TIME", 4 * 2 * 5 * 5)
    tokens = np.zeros((24, 5, 8), "float32")
    devices = [f"cpu:{index}" for index in range(4)]
    mesh = keras.distribution.DeviceMesh((4,), ["batch"], devices)
    distribution = keras.distribution.ModelParallel(
        layout_map=keras.distribution.LayoutMap(mesh), batch_dim_name="batch"
    )
    with target_platform("tpu"):
        assert kernels._shards_and_chunks(tokens, 2) == (1, 24)
        with distribution.scope():
            assert kernels._shards_and_chunks(tokens, 2) == (4, 6)
            # Cannot be split over four devices
            assert kernels._shards_and_chunks(tokens[:7], 2) == (1, 7)
        monkeypatch.setattr(keras.distribution, "list_devices", lambda: devices)
        assert kernels._shards_and_chunks(tokens, 2) == (4, 6)


@jax_alone
def test_what_keras_is_asked_for_on_each_platform(monkeypatch, rng):
    """Keras 3.15 on a TPU, left to itself, takes a kernel that is causal, drops the bias and does
    not scale the queries.
    """
    x = rng.normal(size=(2, 128, 8)).astype("float32")
    assert [asked["flash_attention"] for asked in asked_of_keras(monkeypatch, "tpu", x)] == [False]
    assert [asked["flash_attention"] for asked in asked_of_keras(monkeypatch, "gpu", x)] == [None]
    assert asked_of_keras(monkeypatch, "cpu", x) == []
    assert asked_of_keras(monkeypatch, "tpu", x, return_attention_scores=True) == []


@jax_alone
def test_the_bias_of_merged_tokens_has_a_row_for_each_query(monkeypatch, rng):
    """cuDNN refuses one that is broadcast over the queries."""
    shapes = []
    monkeypatch.setattr(
        ops,
        "dot_product_attention",
        lambda query, key, value, bias, **_: (shapes.append(bias.shape), query)[1],
    )
    layer = layers.MergingTransformerBlock(2, 12, num_merged_tokens=1)
    with target_platform("gpu"):
        layer(rng.normal(size=(3, 7, 8)).astype("float32"), np.ones((3, 7), "float32"))
    assert shapes == [(3, 1, 7, 7)]


@jax_alone
def test_the_platform_is_that_of_the_array_or_of_the_distribution(monkeypatch):
    import jax

    assert kernels._platform(jax.numpy.zeros(1)) == "cpu"
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["gpu:0", "gpu:1"])
    assert kernels._platform(jax.numpy.zeros(1)) == "cpu"  # an array is where it is
    seen = []
    jax.jit(lambda x: (seen.append(kernels._platform(x)), x)[1])(jax.numpy.zeros(1))
    mesh = keras.distribution.DeviceMesh((1,), ["batch"], ["cpu:0"])
    with keras.distribution.DataParallel(device_mesh=mesh).scope():
        jax.jit(lambda x: (seen.append(kernels._platform(x)), x + 1)[1])(jax.numpy.zeros(1))
    with target_platform("tpu"):
        jax.jit(lambda x: (seen.append(kernels._platform(x)), x + 2)[1])(jax.numpy.zeros(1))
    assert seen == ["gpu", "cpu", "tpu"]


def test_an_unknown_platform_is_refused():
    with (
        raises("`platform` must be one of 'cpu', 'gpu', 'tpu'. Received: platform='cuda'"),
        target_platform("cuda"),
    ):
        pass


COMPILE = """
import logging
import sys
from unittest import mock

import jax
import keras
from jax.experimental import topologies
from keras import ops

import keras_deit

logging.disable(logging.CRITICAL)  # Keras logs each of its attempts that failed
topology = topologies.get_topology_desc(topology_name="v5e:2x2", platform="tpu")
sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, "bfloat16", sharding=sharding) for shape in shapes]
    with mock.patch.object(jax, "devices", lambda backend=None: list(topology.devices)), keras_deit.layers.target_platform("tpu"):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).compile().as_text()


def backbone(image_size, num_layers=1, **options):
    return keras_deit.models.DeiTBackbone((*image_size, 3), 16, num_layers, 2, 128, 128, dtype="bfloat16", **options)


# Left to itself, Keras takes the kernel.
print(compiled(ops.dot_product_attention, *[(1, 128, 2, 128)] * 3).count("tpu_custom_call") > 0)
for image_size, options in (
    ((144, 224), {"use_distillation_token": True}),  # 126 patches and 2 tokens
    ((240, 272), {}),  # 255 and 1
    ((272, 480), {"use_distillation_token": True}),  # 510 and 2
    ((224, 224), {"use_distillation_token": True, "num_merged_tokens": 70, "num_layers": 2}),  # 198, then 128
):
    model = backbone(image_size, **options)
    text = compiled(model, (1, *image_size, 3))
    attended = [scores.shape[-1] for scores in model.attention_scores.values()]
    print(min(count % 128 for count in attended), text.count("tpu_custom_call"))
"""


@pytest.mark.tpu
@jax_alone
def test_no_splash_attention_in_what_a_tpu_would_run(tmp_path):
    pytest.importorskip("libtpu")
    (tmp_path / "compile_for_tpu.py").write_text(COMPILE)
    result = subprocess.run(
        [sys.executable, tmp_path / "compile_for_tpu.py"],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            # libtpu asks a metadata server for what is not said here.
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        },
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:-1] == ["True", "0 0", "0 0", "0 0", "0 0"]
