"""tools/convert_checkpoint.py: three PyTorch layouts to presets and back, bit for bit."""

import argparse
import hashlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_deit import presets
from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from keras_deit.presets import catalog, handles, timm_tensors
from tests.helpers import images, numpy, raises, randomize, tiny_backbone, tiny_classifier
from tests.hub_layouts import transformers_names
from tests.scripts import ROOT, load_script, run_script

tool = load_script("tools/convert_checkpoint.py")

NAME = "deit_tiny_distilled_patch16_224"


@pytest.fixture
def classifier(monkeypatch, rng):
    """A published architecture with tiny sizes."""
    monkeypatch.setitem(catalog.SIZES, "tiny", (2, 2, 8))
    return randomize(DeiTImageClassifier.from_preset(NAME, load_weights=False), rng)


def facebook_names(tensors):
    return {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.backend
@pytest.mark.parametrize("layout", ["timm", "facebookresearch", "transformers 4", "transformers 5"])
def test_round_trip(layout, classifier, tmp_path):
    tensors = timm_tensors(classifier)
    written = {
        "timm": tensors,
        "facebookresearch": facebook_names(tensors),
        "transformers 4": transformers_names(tensors, 4),
        "transformers 5": transformers_names(tensors, 5),
    }[layout]
    save_file(written, tmp_path / "file.safetensors")
    tool.convert(NAME, tmp_path / "preset", checkpoint=tmp_path / "file.safetensors")
    loaded = DeiTImageClassifier.from_preset(tmp_path / "preset")
    assert len(loaded.labels) == 1000
    assert loaded.preprocessor.crop_ratio == 0.875
    tool.convert(tmp_path / "preset", tmp_path / "deep" / "back.safetensors", to="timm")
    back = load_file(tmp_path / "deep" / "back.safetensors")
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["back.safetensors"]


def test_home_directory(classifier, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    save_file(timm_tensors(classifier), tmp_path / "file.safetensors")
    run_script(tool, preset=NAME, checkpoint="~/file.safetensors", output="~/preset")
    run_script(tool, preset="~/preset", output="~/back.safetensors", to="timm")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "back.safetensors",
        "file.safetensors",
        "preset",
    ]


def test_any_number_of_classes(classifier, rng, tmp_path):
    tensors = timm_tensors(classifier)
    x = images(rng, batch=1, shape=(224, 224, 3))
    for head in ("head", "head_dist"):
        tensors[f"{head}.weight"], tensors[f"{head}.bias"] = (
            tensors[f"{head}.weight"][:7],
            tensors[f"{head}.bias"][:7],
        )
    save_file(tensors, tmp_path / "seven.safetensors")
    tool.convert(NAME, tmp_path / "seven", checkpoint=tmp_path / "seven.safetensors")
    loaded = DeiTImageClassifier.from_preset(tmp_path / "seven")
    np.testing.assert_allclose(numpy(loaded(x)), numpy(classifier(x))[:, :7], rtol=1e-5, atol=1e-5)
    assert loaded.labels is None
    save_file(
        {name: tensor for name, tensor in tensors.items() if "head" not in name},
        tmp_path / "none.safetensors",
    )
    tool.convert(NAME, tmp_path / "none", checkpoint=tmp_path / "none.safetensors")
    np.testing.assert_array_equal(
        numpy(DeiTBackbone.from_preset(tmp_path / "none")(x)), numpy(classifier.backbone(x))
    )
    tool.convert(tmp_path / "none", tmp_path / "back.safetensors", to="timm")
    assert set(load_file(tmp_path / "back.safetensors")) == {
        name for name in tensors if "head" not in name
    }


def test_one_head_on_a_distilled_model(classifier, rng, tmp_path):
    one = randomize(DeiTImageClassifier(classifier.backbone, 7, use_distillation_head=False), rng)
    save_file(presets.transformers_tensors(one), tmp_path / "one.safetensors")
    tool.convert(NAME, tmp_path / "one", checkpoint=tmp_path / "one.safetensors")
    x = images(rng, batch=1, shape=(224, 224, 3))
    np.testing.assert_array_equal(
        numpy(DeiTImageClassifier.from_preset(tmp_path / "one")(x)), numpy(one(x))
    )


def test_checksum_in_the_file_name(classifier, tmp_path):
    save_file(timm_tensors(classifier), tmp_path / "file.safetensors")
    content = (tmp_path / "file.safetensors").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    good = tmp_path / f"{NAME}-{digest[:8]}.safetensors"
    good.write_bytes(content)
    tool.convert(NAME, tmp_path / "preset", checkpoint=good)
    card = (tmp_path / "preset" / "README.md").read_text()
    assert f"The weights come from `{NAME}`" in card
    assert "license: apache-2.0" in card
    assert tool.check_hash(tmp_path / "my_own-20261122.safetensors") is None  # a date is no hash
    bad = tmp_path / f"{NAME}-b40b3cf7.safetensors"
    bad.write_bytes(content)
    with raises(
        f"--checkpoint {bad}: The file is truncated or changed: by its name, its SHA-256 starts "
        f"with b40b3cf7, but it is {digest}. Download it again."
    ):
        tool.convert(NAME, tmp_path / "preset", checkpoint=bad)


def test_error_names_the_matching_architecture(classifier, monkeypatch, tmp_path):
    save_file(timm_tensors(classifier), tmp_path / "file.safetensors")
    size = sum(tensor.size for tensor in timm_tensors(classifier).values())
    rows = dict(DeiTImageClassifier.presets)
    rows[NAME] = {**rows[NAME], "parameters": size}
    monkeypatch.setattr(DeiTImageClassifier, "presets", rows)
    words = (
        "file.safetensors does not fit --preset deit_tiny_patch16_224. By its number of weights it "
        f"is {NAME}: use that as --preset."
    )
    with pytest.raises(ValueError, match=words):
        tool.convert(
            "deit_tiny_patch16_224", tmp_path / "preset", checkpoint=tmp_path / "file.safetensors"
        )
    assert not (tmp_path / "preset").exists()


@pytest.mark.slow
def test_existing_output_is_kept(tmp_path):
    (tmp_path / "mine").mkdir()
    program = [
        sys.executable,
        ROOT / "tools" / "convert_checkpoint.py",
        "--preset",
        "deit_nano_distilled_patch4_32_digits",
    ]
    program += ["--output", tmp_path / "mine"]
    done = subprocess.run(
        program,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert (
        f"--output {tmp_path / 'mine'} exists. Choose another path, or replace it with --overwrite."
        in done.stderr
    )
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.slow
def test_pth_files(classifier, tmp_path):
    torch = pytest.importorskip("torch")  # .ci/run has it
    tensors = timm_tensors(classifier)
    state = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}
    for content in (
        state,
        {"model": state, "args": argparse.Namespace(lr=1.0)},
        {"state_dict": state},
        parameters,
    ):
        torch.save(content, tmp_path / "file.pth")
        found = tool.read_checkpoint(tmp_path / "file.pth")
        assert set(found) == set(tensors)
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(found[name], tensor)
    tool.convert(NAME, tmp_path / "preset", checkpoint=tmp_path / "file.pth")
    torch.save({"model": state, "path": pathlib.PurePosixPath("/")}, tmp_path / "unsafe.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "file.pth").read_bytes()[:-999])
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("unsafe.pth", "cut.pth", "empty.pth"):
        with pytest.raises(
            ValueError,
            match=f"--checkpoint .*{name}: The file is damaged, or contains more than tensors",
        ):
            tool.load_model(NAME, tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with raises(
        "The file must contain a state dict, or one under 'model' or 'state_dict'. Received: list"
    ):
        tool.read_checkpoint(tmp_path / "list.pth")


def test_errors_on_reading_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "file.pth").write_bytes(b"")
    with raises("Reading it needs PyTorch: `pip install torch`."):
        tool.read_checkpoint(tmp_path / "file.pth")
    with raises("The file does not exist."):
        tool.read_checkpoint(tmp_path / "nothing.pth")
    (tmp_path / "weights.npz").write_bytes(b"")
    with raises(
        "Expected a file ending in .safetensors, .pth, .pt, .bin or .msgpack. Received: "
        f"{tmp_path / 'weights.npz'}"
    ):
        tool.read_checkpoint(tmp_path / "weights.npz")


@pytest.mark.slow
def test_all_continues_after_a_failure(hub, monkeypatch, rng, tmp_path, capsys):
    monkeypatch.setitem(catalog.SIZES, "tiny", (2, 2, 8))
    monkeypatch.setitem(catalog.SIZES, "small", (2, 2, 8))
    names = ["deit_tiny_patch16_224", "deit_small_patch16_224", "deit3_small_patch16_224"]
    monkeypatch.setattr(
        DeiTImageClassifier, "presets", {name: DeiTImageClassifier.presets[name] for name in names}
    )
    from safetensors.numpy import save

    for name in (names[0], names[2]):  # the second is not there
        model = randomize(DeiTImageClassifier.from_preset(name, load_weights=False), rng)
        hub.files[(handles.ARCHITECTURES[name].timm_repository, "model.safetensors")] = save(
            timm_tensors(model)
        )
    failures = tool.convert_all(tmp_path / "all", "keras_deit")
    assert list(failures) == [names[1]]
    printed = capsys.readouterr().out
    assert (
        f"Converted 2 of 3 to {tmp_path / 'all'}.\nFailed: deit_small_patch16_224: ValueError: "
        "--preset deit_small_patch16_224: " in printed
    )
    assert "does not exist or is private. Check the name." in printed
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted(
        [names[0], names[2]]
    )
    assert (
        "The weights come from `deit3_small_patch16_224`"
        in (tmp_path / "all" / names[2] / "README.md").read_text()
    )
    assert list(tool.convert_all(tmp_path / "timm", "timm")) == [names[1]]
    assert len(load_file(tmp_path / "timm" / f"{names[0]}.safetensors")) == 8 + 2 * 12


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
def test_errors_on_models_that_timm_lacks():
    with raises(
        "timm's models pool by token, mean or map, and have a distillation head if the backbone "
        "has a distillation token. Received: pooling='token', use_distillation_head=False, "
        "use_distillation_token=True"
    ):
        timm_tensors(tiny_classifier(use_distillation_head=False))
    with raises(
        "timm's models with rotary positions or a norm before the first block lack biases that "
        "this one has. Needed: position_scope='all' or 'patches'. Received: position_scope='rotary'"
    ):
        timm_tensors(tiny_backbone(position_scope="rotary"))
    quantized = tiny_backbone()
    quantized.quantize("int8")
    with pytest.raises(
        ValueError,
        match="The model's weights do not match a DeiT in PyTorch. Convert the model before `quantize`.",
    ):
        timm_tensors(quantized)


def test_errors_on_models_that_transformers_lacks():
    with raises(
        "transformers' DeiT and ViT have no such parts. Needed: layer_scale_init_value=None, "
        "position_scope='all'. Received: layer_scale_init_value=0.1, position_scope='patches'"
    ):
        presets.transformers_tensors(
            tiny_backbone(position_scope="patches", layer_scale_init_value=0.1)
        )
    with raises(
        'transformers\' classifiers need `pooling="token"` and `use_head_norm=False`. Received: '
        "pooling='mean', use_head_norm=False"
    ):
        presets.transformers_tensors(tiny_classifier(use_distillation_head=False, pooling="mean"))
    assert "embeddings.cls_token" in presets.transformers_tensors(tiny_backbone())


def test_channels_first_has_the_same_tensors(rng):
    last = randomize(tiny_backbone(), rng)
    first = tiny_backbone(image_shape=(3, 12, 32), data_format="channels_first")
    tool.presets.assign_tensors(first, timm_tensors(last), source="the other")
    for name, tensor in timm_tensors(last).items():
        np.testing.assert_array_equal(timm_tensors(first)[name], tensor)
    x = images(rng)
    np.testing.assert_allclose(numpy(first(x.transpose(0, 3, 1, 2))), numpy(last(x)), atol=1e-5)


@pytest.mark.process
def test_on_the_command_line(tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, ROOT / "tools" / "convert_checkpoint.py", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )

    digits = "deit_nano_distilled_patch4_32_digits"
    result = run("--preset", digits, "--to", "timm", "--output", tmp_path / "digits.safetensors")
    assert (result.returncode, result.stdout) == (
        0,
        f"Wrote {tmp_path / 'digits.safetensors'}\n",
    ), result.stderr
    expected = timm_tensors(DeiTImageClassifier.from_preset(digits))
    for name, tensor in load_file(tmp_path / "digits.safetensors").items():
        np.testing.assert_array_equal(tensor, expected[name])
    result = run("--preset", "deit_tiny", "--output", tmp_path / "no")
    assert result.returncode == 1
    why = "\nNot converted. --preset deit_tiny: A preset handle is a built-in name, "
    assert why in "\n" + result.stderr
