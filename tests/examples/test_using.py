"""The examples run and print what their docstrings say."""

import ast
import importlib.util
import re
import sys
import unittest.mock

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from tests import pages
from tests.conftest import BACKEND
from tests.helpers import numpy
from tests.scripts import ROOT

pytestmark = pytest.mark.backend


@pytest.fixture(autouse=True)
def no_xla(monkeypatch):
    """On TensorFlow, XLA compilation would take longer than these examples."""
    if BACKEND == "tensorflow":
        monkeypatch.setattr(
            keras.Model, "jit_compile", property(lambda self: False, lambda self, value: None)
        )


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs an example in a folder of its own, and returns what it printed and its names."""

    def run(example):
        path = ROOT / "examples" / example
        source = path.read_text(encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        names = {"__name__": "__main__"}
        exec(compile(source, path, "exec"), names)
        printed = capsys.readouterr().out
        # The lines of the docstring. Numbers differ between processors: the tests below check them.
        *_, promised = ast.get_docstring(ast.parse(source)).split("\n\n")
        assert without_numbers(printed) == without_numbers(promised)
        return printed, names

    return run


def without_numbers(text):
    return [
        re.sub(r"\d[\d,.]*(e[-+]\d+)?", "#", line.strip()) for line in text.strip().splitlines()
    ]


def numbers(text):
    return [
        float(number.replace(",", ""))
        for number in re.findall(r"\d[\d,]*\.?\d*(?:e[-+]\d+)?", text)
    ]


# It makes a dataset of the arrays, and then tells Keras to shuffle it; its presets keep the state
# of an optimizer, but not which.
@pytest.mark.peer
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer:UserWarning")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed, but will be ignored:UserWarning")
def test_keras_hub(run, tmp_path):
    pytest.importorskip("keras_hub")
    _, names = run("keras_hub_classifier.py")
    assert names["accuracy"] > 0.9
    assert {file.name for file in tmp_path.iterdir()} == {
        "keras_hub_classifier",
        "keras_hub_classifier.keras",
    }


# Of its models; and `RetinaNet` makes a dataset of the arrays, and then tells Keras to shuffle it.
@pytest.mark.peer
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer:UserWarning")
@pytest.mark.filterwarnings("ignore:The structure of `inputs` doesn't match:UserWarning")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed, but will be ignored:UserWarning")
def test_keras_hub_page(tmp_path, rng):
    keras_hub = pytest.importorskip("keras_hub")
    names = pages.run("docs/keras_hub.md", pages.blocks("docs/keras_hub.md"))
    images = rng.normal(size=(2, 64, 64, 3)).astype("float32")
    points = {
        "points": np.ones((2, 1, 2)),
        "labels": np.ones((2, 1)),
        "boxes": np.zeros((2, 1, 2, 2)),
    }
    prompts = {
        name: array.astype("float32")
        for name, array in {**points, "masks": np.zeros((2, 0, 16, 16, 1))}.items()
    }
    text = {"token_ids": np.ones((2, 5), "int32"), "padding_mask": np.ones((2, 5), "int32")}
    for name, task in names["tasks"].items():
        others = {"SAMImageSegmenter": prompts, "PARSeqBackbone": text}.get(name)
        inputs = images if others is None else {"images": images, **others}
        outputs = task.predict(inputs, verbose=0)
        # In GB: the weights of the first come in two files.
        task.save_to_preset(
            str(tmp_path / name), max_shard_size=6e-5 if name == "ViTImageClassifier" else 10
        )
        loaded = type(task).from_preset(str(tmp_path / name))
        for expected, found in zip(
            keras.tree.flatten(outputs), keras.tree.flatten(loaded.predict(inputs, verbose=0))
        ):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4, err_msg=name)
    assert len(list((tmp_path / "ViTImageClassifier").glob("model_0*.weights.h5"))) == 2
    # Detectors learn through the pyramid, down to the patches.
    kernel = names["backbone"].patch_embedding.projection.kernel
    before = numpy(kernel).copy()
    corners = np.full((2, 1, 4), [4, 4, 40, 40], "float32")
    boxes = {"boxes": corners, "labels": np.ones((2, 1), "int64")}
    names["tasks"]["RetinaNet on several levels"].fit(images, boxes, batch_size=2, verbose=0)
    assert abs(numpy(kernel) - before).max() > 0
    # What the page says does not work.
    of_ours = keras_hub.models.ViTImageClassifier(names["backbone"], num_classes=3)
    with pytest.raises(TypeError, match="max_shard_size"):
        of_ours.save_to_preset(str(tmp_path / "ours"))
    with pytest.raises(KeyError, match="P1"):
        keras_hub.models.SegFormerBackbone(names["backbone"], projection_filters=8)
    pyramid = names["PyramidBackbone"](names["backbone"], 16, ("P2", "P3", "P4", "P5"))
    pyramid.hidden_dims = [16] * 4
    pyramid.pyramid_outputs = {
        f"P{index}": feature_map
        for index, feature_map in enumerate(pyramid.pyramid_outputs.values(), start=1)
    }
    with pytest.raises(ValueError, match="All operation names should be unique"):
        keras_hub.models.SegFormerBackbone(pyramid, projection_filters=8)
    of_any_size = DeiTBackbone((None, None, 3), 16, 1, 1, 8, 8, position_grid_size=4)
    with pytest.raises(AttributeError, match="stackwise_num_blocks"):
        keras_hub.models.BASNetBackbone(of_any_size, 3)
    with pytest.raises(ValueError, match="must be a `DINOV2Backbone`"):
        keras_hub.models.DepthAnythingBackbone(names["backbone"], [1], [8], 8, 8, -1)


@pytest.mark.peer
def test_keras_cv(run, tmp_path):
    pytest.importorskip("keras_cv")
    _, names = run("keras_cv_classifier.py")
    assert names["accuracy"] > 0.9
    assert [file.name for file in tmp_path.iterdir()] == ["keras_cv_classifier.keras"]


# Of `keras.metrics.MeanIoU`, on JAX.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64:UserWarning")
def test_segmentation(run, tmp_path):
    printed, names = run("segmentation.py")
    baseline, trained = numbers(printed)[-2:]
    assert baseline < 0.1
    assert trained > 0.7
    model = keras.saving.load_model(tmp_path / "segmentation.keras")
    answer = model.predict(names["images"][names["test"]], verbose=0).argmax(axis=-1)
    np.testing.assert_array_equal(answer, names["answer"])


@pytest.mark.slow
def test_plain_keras_model(run):
    _, names = run("plain_keras_model.py")
    assert names["accuracy"] > 0.75
    assert names["attention"].shape == (360, 4, 17, 17)
    np.testing.assert_allclose(names["attention"].sum(axis=-1), 1.0, atol=1e-5)


def test_modern_block(run, tmp_path):
    _, names = run("modern_block.py")
    assert {file.name for file in tmp_path.iterdir()} == {"dinov2.keras", "dinov3.keras"}
    # The parts differ where the two designs do.
    assert names["dinov2"].count_params() != names["dinov3"].count_params()
    assert names["rotation"].shape == (2, 11, 8)


@pytest.fixture
def torchvision(monkeypatch):
    """A stand-in where torchvision is not installed: timm imports it for its transforms."""
    if importlib.util.find_spec("torchvision") is None:
        if importlib.util.find_spec("transformers") is not None:
            # Asks once whether torchvision is installed: it must not find the stand-in.
            importlib.import_module("transformers")
        for name in (
            "",
            ".transforms",
            ".transforms.functional",
            ".datasets",
            ".ops",
            ".ops.misc",
            ".models",
            ".models.feature_extraction",
        ):
            monkeypatch.setitem(
                sys.modules,
                f"torchvision{name}",
                unittest.mock.MagicMock(__path__=[], __spec__=None),
            )


@pytest.mark.peer
def test_timm(run, torchvision):
    pytest.importorskip("torch")
    pytest.importorskip("timm.models")
    printed, names = run("timm_there_and_back.py")
    difference, same, total, _ = numbers(printed)
    assert difference < 1e-4
    assert same == total == 360
    assert (
        sum(tensor.numel() for tensor in names["model"].state_dict().values())
        == names["classifier"].count_params()
    )


@pytest.mark.slow
def test_lora(run, tmp_path):
    _, names = run("lora.py")
    before, after = names["accuracies"]
    assert before < 0.2
    assert after > 0.75
    # Only the adapters and the head were trained and saved.
    shipped = DeiTImageClassifier.from_preset("deit_nano_distilled_patch4_32_digits")
    shipped = {weight.path: numpy(weight) for weight in shipped.weights}
    for weight in names["classifier"].weights:
        if weight.path in shipped and not weight.path.startswith("head"):
            np.testing.assert_array_equal(numpy(weight), shipped[weight.path], err_msg=weight.path)
    saved = load_file(tmp_path / "lora.safetensors")
    adapters = [name for name in saved if name.rpartition("/")[2].startswith("lora_kernel_")]
    assert len(adapters) == 2 * 4 * 4  # pairs, layers of a block, blocks
    assert len(saved) == len(adapters) + 4  # kernel and bias of both heads


@pytest.mark.slow
def test_int8(run, tmp_path):
    _, names = run("int8.py")
    before, after = names["before"], names["after"]
    assert names["same"] >= 354
    assert 0 < abs(before - after).max() < 0.2
    # It is int8 that was loaded.
    loaded = DeiTImageClassifier.from_preset(tmp_path / "int8")
    assert str(loaded.backbone.blocks[0].attention.qkv.kernel.dtype) == "int8"
    size = {
        name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("float32", "int8")
    }
    assert size["int8"] < 0.4 * size["float32"]
