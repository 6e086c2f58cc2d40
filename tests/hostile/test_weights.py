"""Weights files whose header or numbers are not what they should be, and pickles."""

import json
import os
import pickle
import struct

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_deit.layers import DeiTImageConverter
from keras_deit.models import DeiTImageClassifier
from keras_deit.presets.safetensors_file import parse_tensors
from tests.helpers import sign, tiny_backbone
from tests.hostile.conftest import refusal
from tests.hub_layouts import timm_tensors, transformers_config, write_folder
from tests.scripts import load_script


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {
    "empty": b"",
    "short": b"\0" * 7,
    "length beyond the file": safetensors({}, length=2**63),
    "100 MB of nothing": safetensors(b" " * 1000, length=10**8),
    "not JSON": safetensors(b"{"),
    "not an object": safetensors(b"[1]"),
    "shape bomb": safetensors({"a": entry(shape=(2**62, 2))}, b"\0" * 4),
    "shape overflow": safetensors({"a": entry(shape=(2**33, 2**33))}, b"\0" * 4),
    "negative": safetensors({"a": entry(shape=(-1,))}, b"\0" * 4),
    "hole": safetensors({"a": entry(offsets=(4, 8))}, b"\0" * 8),
    "overlap": safetensors({"a": entry(), "b": entry()}, b"\0" * 4),
    "beyond the end": safetensors({"a": entry(offsets=(0, 8), shape=(2,))}, b"\0" * 4),
    "unknown type": safetensors({"a": entry(dtype="F128")}, b"\0" * 4),
    "float8": safetensors({"a": entry(dtype="F8_E4M3", shape=(4,))}, b"\0" * 4),
    "nested deeply": safetensors(b"[" * 10**6),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies(name):
    with pytest.raises(ValueError, match="^a.safetensors is truncated or not a safetensors file: "):
        parse_tensors(HEADERS[name], "a.safetensors")


def test_weights_smaller_than_the_model(preset):
    file = preset / "model.safetensors"
    file.write_bytes(safetensors({"a": entry()}, b"\0" * 4))
    sign(preset)
    message = refusal(preset)
    assert message.startswith(f"{preset / 'config.json'} must describe a model of the size of its ")


def change_tensor(file, name, change):
    tensors = load_file(file)
    tensors[name] = change(tensors[name].copy())
    save_file(tensors, file)
    sign(file.parent)


def with_value(value):
    def change(array):
        array.flat[3] = value
        return array

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_by_name(value, preset):
    file, name = preset / "model.safetensors", "block_1/mlp/projection/kernel"
    change_tensor(file, name, with_value(value))
    assert refusal(preset) == (
        f"The weights of {file} have values that are NaN or infinite, so training has diverged or "
        f"the file is damaged. Use weights from before: {name} has 1 of 160"
    )


@pytest.mark.parametrize("dtype", ["int8", "bool", "uint32", "int64"])
def test_other_kinds_of_numbers_are_refused_by_name(dtype, preset):
    name = "block_1/mlp/projection/kernel"
    change_tensor(preset / "model.safetensors", name, lambda array: array.astype(dtype))
    assert refusal(preset) == (
        f"The weights of preset {str(preset)!r} have other kinds of numbers than the model. Copy "
        f"the file again, or use `load_weights=False` for random weights: {name} has {dtype}, not "
        "float32"
    )


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
def test_a_quantized_kernel_must_be_integers(tmp_path):
    backbone = tiny_backbone()
    backbone.quantize("int8")
    backbone.save_to_preset(tmp_path / "preset")
    name = "block_1/mlp/projection/kernel"
    change_tensor(tmp_path / "preset" / "model.safetensors", name, lambda a: a.astype("float32"))
    with pytest.raises(ValueError, match=f"{name} has float32, not int8"):
        type(backbone).from_preset(tmp_path / "preset")


def test_a_diverged_model_does_not_replace_a_preset(preset):
    classifier = DeiTImageClassifier.from_preset(preset)
    kernel = classifier.backbone.blocks[1].mlp.projection.kernel
    kernel.assign(keras.ops.full(kernel.shape, np.nan))
    with pytest.raises(ValueError, match="block_1/mlp/projection/kernel has 160 of 160"):
        classifier.save_to_preset(preset)
    DeiTImageClassifier.from_preset(preset)
    assert [entry.name for entry in preset.parent.iterdir()] == ["preset"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_value(np.nan), "values that are NaN or infinite, .*: blocks.1.mlp.fc2.weight has 1 "),
        (
            lambda array: array.astype("int8"),
            "must be float16, bfloat16, float32 or float64. .*: blocks.1.mlp.fc2.weight has int8",
        ),
    ],
)
def test_tensors_of_pytorch_are_named_as_in_the_file(change, message, preset, tmp_path):
    classifier = DeiTImageClassifier.from_preset(preset)
    folder = write_folder(
        tmp_path / "timm",
        timm_tensors(classifier),
        config=transformers_config(
            "DeiTForImageClassificationWithTeacher", classifier.backbone, [*"abcde"]
        ),
    )
    change_tensor(folder / "model.safetensors", "blocks.1.mlp.fc2.weight", change)
    with pytest.raises(ValueError, match=message):
        DeiTImageClassifier.from_preset(folder, preprocessor=DeiTImageConverter((12, 32)))


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["WITNESS"],)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth"])
def test_a_pickle_is_never_opened(name, preset, tmp_path, monkeypatch):
    """CVE-2025-32434, CVE-2026-24747, GHSA-pqww-w348-m542"""
    monkeypatch.setenv("WITNESS", str(tmp_path / "witness"))
    backbone = DeiTImageClassifier.from_preset(preset).backbone
    config = transformers_config("DeiTModel", backbone)
    folder = write_folder(tmp_path / "pickled", {}, config=config)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="Pickles .* are not opened"):
        type(backbone).from_preset(folder)
    assert not (tmp_path / "witness").exists()


@pytest.mark.slow
def test_a_pickle_that_runs_code_is_not_converted(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")  # .ci/run has it
    read_checkpoint = load_script("tools/convert_checkpoint.py").read_checkpoint
    monkeypatch.setenv("WITNESS", str(tmp_path / "witness"))
    (tmp_path / "model.pth").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="contains more than tensors, which could run code"):
        read_checkpoint(tmp_path / "model.pth")
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.9.1"))
    with pytest.raises(
        ValueError, match=r"needs PyTorch 2.10 or newer: .* Received: PyTorch 2.9.1"
    ):
        read_checkpoint(tmp_path / "model.pth")
    assert not (tmp_path / "witness").exists()
