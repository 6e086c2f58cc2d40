"""Checkpoints of affjljoo3581/deit3-jax: Flax's files, written and computed here from its formulas.

Their model, in plain NumPy and float64, is the witness. It was written from src/modeling.py at
753d01b, and shares nothing with the layers or with tests/witness.py: separate query, key and value
with an axis of heads, and positions as a grid.
"""

import math
import sys

import absl.app
import msgpack
import numpy as np
import pytest
from safetensors.numpy import load_file

from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from tests.helpers import images, numpy, raises
from tests.scripts import load_script, run_script

tool = load_script("tools/convert_checkpoint.py")

ROWS, COLUMNS, PATCH, DIM, HEADS, HEAD_DIM, LAYERS = 3, 5, 4, 12, 3, 4, 2
SIZE = (ROWS * PATCH, COLUMNS * PATCH, 3)


def parameters(rng, layer_scale=True, num_classes=7):
    """The tree of a model of deit3-jax with random values."""

    def dense(inputs, outputs):
        return {"kernel": normal(*inputs, *outputs), "bias": normal(*outputs)}

    def norm():
        return {"scale": 1 + normal(DIM), "bias": normal(DIM)}

    def normal(*shape):
        return rng.normal(0, 0.3, shape).astype("float32")

    model = {
        "embed": {
            "cls_token": normal(1, 1, DIM),
            "wpe": normal(ROWS, COLUMNS, DIM),
            "wte": dense((PATCH, PATCH, 3), (DIM,)),
        },
        "norm": norm(),
    }
    for index in range(LAYERS):
        model[f"layer_{index}"] = {
            "attn": {
                **{part: dense((DIM,), (HEADS, HEAD_DIM)) for part in ("wq", "wk", "wv")},
                "wo": dense((HEADS, HEAD_DIM), (DIM,)),
            },
            "ff": {"w1": dense((DIM,), (4 * DIM,)), "w2": dense((4 * DIM,), (DIM,))},
            "norm1": norm(),
            "norm2": norm(),
            **({"scale1": normal(DIM), "scale2": normal(DIM)} if layer_scale else {}),
        }
    if num_classes:
        model["head"] = dense((DIM,), (num_classes,))
    return {"model": model}


def forward(x, tree):
    """(tokens after the last norm, logits) of deit3-jax."""
    model, x = tree["model"], x.astype("float64")
    patches = x.reshape(-1, ROWS, PATCH, COLUMNS, PATCH, 3)
    wte = model["embed"]["wte"]
    grid = np.einsum("brhcwi,hwid->brcd", patches, wte["kernel"]) + wte["bias"]
    tokens = (grid + model["embed"]["wpe"]).reshape(len(x), ROWS * COLUMNS, DIM)
    token = np.repeat(model["embed"]["cls_token"], len(x), axis=0)
    x = np.concatenate([token, tokens], axis=1)
    for index in range(LAYERS):
        layer = model[f"layer_{index}"]
        x = x + layer.get("scale1", 1.0) * attention(norm(x, layer["norm1"]), layer["attn"])
        hidden = gelu(project(norm(x, layer["norm2"]), layer["ff"]["w1"]))
        x = x + layer.get("scale2", 1.0) * project(hidden, layer["ff"]["w2"])
    x = norm(x, model["norm"])
    return x, project(x[:, 0], model["head"]) if "head" in model else None


def attention(x, weights):
    query, key, value = (
        np.einsum("btd,dhe->bthe", x, weights[part]["kernel"]) + weights[part]["bias"]
        for part in ("wq", "wk", "wv")
    )
    scores = np.exp(np.einsum("bqhe,bkhe->bhqk", query, key) / HEAD_DIM**0.5)
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed = np.einsum("bhqk,bkhe->bqhe", scores, value)
    return np.einsum("bqhe,hed->bqd", mixed, weights["wo"]["kernel"]) + weights["wo"]["bias"]


def project(x, weights):
    return x @ weights["kernel"] + weights["bias"]


def norm(x, weights):
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * weights["scale"] + weights["bias"]


def gelu(x):
    """What `flax.linen.gelu` computes by default, not the exact GELU."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def write(path, tree):
    """As Flax does."""

    def pack(array):
        content = (array.shape, array.dtype.name, array.tobytes())
        return msgpack.ExtType(1, msgpack.packb(content))

    path.write_bytes(msgpack.packb(tree, default=pack))
    return path


@pytest.mark.backend
@pytest.mark.parametrize("layer_scale", [True, False])
def test_a_classifier(layer_scale, rng, tmp_path):
    tree = parameters(rng, layer_scale)
    file = write(tmp_path / "model.msgpack", tree)
    run_script(tool, checkpoint=file, output=tmp_path / "preset")
    loaded = DeiTImageClassifier.from_preset(tmp_path / "preset")
    assert loaded.preprocessor.image_size == SIZE[:2]
    assert loaded.preprocessor.crop_ratio == (1.0 if layer_scale else 0.875)
    assert loaded.labels is None
    x = images(rng, shape=SIZE)
    tokens, logits = forward(x, tree)
    np.testing.assert_allclose(numpy(loaded.backbone(x)), tokens, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(numpy(loaded(x)), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.backend
def test_a_backbone_and_imagenet(rng, tmp_path):
    x = images(rng, shape=SIZE)
    tree = parameters(rng, num_classes=0)
    tool.convert(None, tmp_path / "a", checkpoint=write(tmp_path / "a.msgpack", tree))
    tokens, _ = forward(x, tree)
    found = numpy(DeiTBackbone.from_preset(tmp_path / "a")(x))
    np.testing.assert_allclose(found, tokens, rtol=1e-5, atol=1e-5)
    tree = parameters(rng, num_classes=1000)
    tool.convert(None, tmp_path / "b", checkpoint=write(tmp_path / "b.msgpack", tree))
    assert DeiTImageClassifier.from_preset(tmp_path / "b").labels[281] == "tabby, tabby cat"


def test_bfloat16_and_no_outer_model(rng, tmp_path):
    import ml_dtypes

    tree = parameters(rng)["model"]
    tree["norm"]["scale"] = tree["norm"]["scale"].astype(ml_dtypes.bfloat16)
    model = tool.load_model(None, write(tmp_path / "model.msgpack", tree))
    expected = tree["norm"]["scale"].astype("float32")
    np.testing.assert_array_equal(numpy(model.backbone.final_norm.gamma), expected)


def test_to_timm(rng, tmp_path):
    """The mapping that the repository publishes, scripts/convert_flax_to_pytorch.py, but for the
    class token's position, which is zero there and not a position here.
    """
    tree = parameters(rng)
    file = write(tmp_path / "model.msgpack", tree)
    run_script(tool, checkpoint=file, to="timm", output=tmp_path / "timm.safetensors")
    found, layer = load_file(tmp_path / "timm.safetensors"), tree["model"]["layer_1"]
    kernels = [layer["attn"][part]["kernel"].reshape(DIM, -1) for part in ("wq", "wk", "wv")]
    qkv = np.concatenate(kernels, axis=1).T
    np.testing.assert_array_equal(found["blocks.1.attn.qkv.weight"], qkv)
    wo = layer["attn"]["wo"]["kernel"].reshape(-1, DIM).T
    np.testing.assert_array_equal(found["blocks.1.attn.proj.weight"], wo)
    np.testing.assert_array_equal(found["blocks.1.ls2.gamma"], layer["scale2"])
    assert found["pos_embed"].shape == (1, ROWS * COLUMNS, DIM)
    assert len(found) == 8 + 14 * LAYERS


def test_errors_list_what_is_missing_and_left_over(rng, tmp_path):
    tree = parameters(rng)
    layer = tree["model"]["layer_1"]
    layer["attn"]["wk"]["kernel"] = layer["attn"]["wk"]["kernel"].reshape(DIM, -1)
    layer["extra"] = layer.pop("scale2")
    file = write(tmp_path / "model.msgpack", tree)
    with raises(
        f"--checkpoint {file}: The tensors of {file} are not those of a model of deit3-jax.\n"
        "Missing: layer_1/scale2 (12,)\nUnexpected: layer_1/extra (12,)\n"
        "Wrong shape: layer_1/attn/wk/kernel is (12, 12), not (12, 3, 4)"
    ):
        tool.load_model(None, file)


@pytest.mark.parametrize(
    ("wpe", "received"),
    [
        (None, "no such tensor"),
        (np.ones((15, 12), "float32"), "shape (15, 12)"),
        (np.ones((0, 5, 12), "float32"), "shape (0, 5, 12)"),
    ],
)
def test_errors_on_models_without_learned_positions(wpe, received, rng, tmp_path):
    tree = parameters(rng)
    del tree["model"]["embed"]["wpe"]
    if wpe is not None:
        tree["model"]["embed"]["wpe"] = wpe
    file = write(tmp_path / "model.msgpack", tree)
    with raises(
        f"--checkpoint {file}: A checkpoint of deit3-jax with learned positions has "
        f"model/embed/wpe, with 3 axes. Received: {received}"
    ):
        tool.load_model(None, file)


def test_errors_on_values(rng, tmp_path):
    tree = parameters(rng)
    tree["model"]["norm"]["bias"][3] = np.nan
    file = write(tmp_path / "nan.msgpack", tree)
    with raises(
        f"--checkpoint {file}: The weights of {file} have values that are NaN or infinite, so "
        "training has diverged or the file is damaged. Use weights from before: norm.bias has 1 "
        "of 12"
    ):
        tool.load_model(None, file)
    tree["model"]["norm"]["bias"] = np.ones(DIM, "int8")
    file = write(tmp_path / "int8.msgpack", tree)
    with raises(
        f"--checkpoint {file}: model/norm/bias must be float16, float32, float64, bfloat16. "
        "Received: int8"
    ):
        tool.load_model(None, file)


def test_errors_on_files(rng, tmp_path):
    def load(name, content=None):
        file = tmp_path / name
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ValueError) as caught:
            tool.load_model(None, file)
        return str(caught.value).removeprefix(f"--checkpoint {file}: ")

    whole = write(tmp_path / "model.msgpack", parameters(rng)).read_bytes()
    assert load("nothing.msgpack") == "The file does not exist."
    truncated = "The file is truncated or not one of Flax's: "
    for content in (b"", whole[:-9], whole + b"\x00", b"\xc1", b"\x91" * 2000, b"\xdd\xff\xff"):
        assert load("file.msgpack", content).startswith(truncated)
    others = "The file must contain maps and arrays alone. Save only the parameters. Received: "
    for content, received in (
        ([1], "the whole file is of type list"),
        ({"model": {"step": 3}}, "model/step is of type int"),
        ({"model": msgpack.ExtType(2, b"")}, "model is of type ExtType"),
        ({"model": msgpack.ExtType(3, b"")}, "model is of type ExtType"),
    ):
        assert load("file.msgpack", msgpack.packb(content)) == others + received
    for inner in (b"", msgpack.packb([[2], "float32", b"1234"]), msgpack.packb(3)):
        content = msgpack.packb({"model": msgpack.ExtType(1, inner)})
        assert load("file.msgpack", content).startswith("The file is damaged: model is no array: ")


def test_errors_of_flags(tmp_path, monkeypatch):
    for flags in (
        {"checkpoint": "a.msgpack", "preset": "deit_tiny_patch16_224"},
        {"checkpoint": "a.msgpack", "all": True},
        {"checkpoint": "a.safetensors"},
        {},
    ):
        with raises(
            "Use --preset NAME, with or without --checkpoint FILE; or --checkpoint FILE.msgpack "
            "alone; or --all alone.",
            absl.app.UsageError,
        ):
            run_script(tool, output=tmp_path / "no", **flags)
    (tmp_path / "a.msgpack").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with raises(
        f"--checkpoint {tmp_path / 'a.msgpack'}: Reading it needs msgpack: `pip install msgpack`."
    ):
        tool.load_model(None, tmp_path / "a.msgpack")
