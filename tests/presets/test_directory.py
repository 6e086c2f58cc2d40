"""save_to_preset, from_preset, and what a broken directory gets to hear."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_deit.layers import DeiTImageConverter
from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from tests.helpers import (
    edit_json,
    images,
    numpy,
    raises,
    randomize,
    raw_images,
    same_arrays,
    sign,
    tiny_backbone,
    tiny_classifier,
)

pytestmark = pytest.mark.backend

FILES = {
    "config.json",
    "model.safetensors",
    "task.json",
    "head.safetensors",
    "preprocessor.json",
    "labels.json",
    "metadata.json",
    "README.md",
}


def test_round_trip(saved, rng):
    classifier, directory = saved
    assert {file.name for file in directory.iterdir()} == FILES
    loaded = DeiTImageClassifier.from_preset(directory)
    assert loaded.get_config() == classifier.get_config()
    x = raw_images(rng)
    same_arrays(loaded.predict(x, verbose=0), classifier.predict(x, verbose=0))


def test_a_backbone_alone_and_out_of_a_classifier(saved, rng, tmp_path):
    classifier, directory = saved
    x = images(rng)
    expected = numpy(classifier.backbone(x))
    backbone = DeiTBackbone.from_preset(directory)
    np.testing.assert_array_equal(numpy(backbone(x)), expected)
    backbone.save_to_preset(tmp_path / "backbone")
    assert {file.name for file in (tmp_path / "backbone").iterdir()} == {
        "config.json",
        "model.safetensors",
        "metadata.json",
        "README.md",
    }
    np.testing.assert_array_equal(
        numpy(DeiTBackbone.from_preset(tmp_path / "backbone")(x)), expected
    )
    with raises(
        f"The preset {str(tmp_path / 'backbone')!r} has no head. Use `num_classes=` for a new one."
    ):
        DeiTImageClassifier.from_preset(tmp_path / "backbone")
    fresh = DeiTImageClassifier.from_preset(tmp_path / "backbone", num_classes=3)
    np.testing.assert_array_equal(numpy(fresh.backbone(x)), expected)


def test_saving_again_replaces(saved, rng):
    classifier, directory = saved
    randomize(classifier, rng)
    classifier.save_to_preset(directory)
    x = images(rng)
    np.testing.assert_array_equal(
        numpy(DeiTImageClassifier.from_preset(directory)(x)), numpy(classifier(x))
    )


def test_channels_first_survives(rng, tmp_path):
    backbone = randomize(tiny_backbone(image_shape=(3, 12, 32), data_format="channels_first"), rng)
    backbone.save_to_preset(tmp_path / "preset")
    x = images(rng).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(
        numpy(DeiTBackbone.from_preset(tmp_path / "preset")(x)), numpy(backbone(x))
    )


def test_an_activation_survives(rng, tmp_path):
    classifier = randomize(tiny_classifier(activation="softmax"), rng)
    classifier.save_to_preset(tmp_path / "preset")
    inputs = images(rng)
    same_arrays(DeiTImageClassifier.from_preset(tmp_path / "preset")(inputs), classifier(inputs))
    logits = DeiTImageClassifier.from_preset(tmp_path / "preset", activation=None)(inputs)
    np.testing.assert_allclose(
        numpy(keras.ops.softmax(logits)), numpy(classifier(inputs)), atol=1e-6
    )


def test_unknown_handles():
    with raises(
        "A preset handle is a built-in name, 'hf://owner/repo' or a directory, and "
        "'deit_tiny_patch16_225' is neither a name "
        "nor an existing path. Did you mean deit_tiny_patch16_224 or "
        "deit_tiny_distilled_patch16_224 or "
        "deit_base_patch16_224?"
    ):
        DeiTBackbone.from_preset("deit_tiny_patch16_225")
    with pytest.raises(
        ValueError,
        match="'resnet50' is neither a name nor an existing path. Known names: deit_nano_",
    ):
        DeiTImageClassifier.from_preset("resnet50")
    with raises(
        "A preset handle is a built-in name, 'hf://owner/repo' or a directory, and "
        "'facebook/deit-tiny-patch16-224' is neither a name "
        "nor an existing path. Did you mean hf://facebook/deit-tiny-patch16-224?"
    ):
        DeiTImageClassifier.from_preset("facebook/deit-tiny-patch16-224")


def test_a_tilde_is_the_home_directory(rng, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    classifier = tiny_classifier()
    for path in ("~/mine", pathlib.Path("~/other")):
        classifier.save_to_preset(path)
        loaded = DeiTImageClassifier.from_preset(path)
        x = images(rng)
        np.testing.assert_array_equal(numpy(loaded(x)), numpy(classifier(x)))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine", "other"]


def test_handles_of_another_type():
    with raises(
        "A preset handle is a built-in name, 'hf://owner/repo' or the path of a directory. "
        "Received: None"
    ):
        DeiTBackbone.from_preset(None)


@pytest.mark.parametrize("name", ["preprocessor.json", "task.json"])
def test_a_lost_file_does_not_make_another_model(saved, name):
    """Without its preprocessor the model would classify raw images as if they were normalised."""
    _, directory = saved
    (directory / name).unlink()
    with raises(
        f"The preset is incomplete: {directory / name} does not exist. Copy the preset again."
    ):
        DeiTImageClassifier.from_preset(directory, num_classes=5)


def test_lost_labels(saved):
    _, directory = saved
    (directory / "labels.json").unlink()
    with raises(
        f"The preset is incomplete: {directory / 'labels.json'} does not exist. Copy the preset "
        "again. To load the model nevertheless, use `labels=[...]` or `labels=None`."
    ):
        DeiTImageClassifier.from_preset(directory)
    assert DeiTImageClassifier.from_preset(directory, labels=None).labels is None
    assert DeiTImageClassifier.from_preset(directory, labels=[*"ABCDE"]).labels == [*"ABCDE"]
    assert DeiTImageClassifier.from_preset(directory, num_classes=3).labels is None


def test_a_folder_of_the_users_is_not_replaced_whatever_its_files_are_called(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not a preset\. .* Found: config.json"):
        tiny_backbone().save_to_preset(tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_model_made_in_a_name_scope(rng, tmp_path):
    with keras.name_scope("teacher"):
        backbone = randomize(tiny_backbone(), rng)
    backbone.save_to_preset(tmp_path / "preset")
    x = images(rng)
    np.testing.assert_array_equal(
        numpy(DeiTBackbone.from_preset(tmp_path / "preset")(x)), numpy(backbone(x))
    )
    with keras.name_scope("student"):
        loaded = DeiTBackbone.from_preset(tmp_path / "preset", image_shape=(12, 32, 3))
    np.testing.assert_array_equal(numpy(loaded(x)), numpy(backbone(x)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("files"), "{file} lacks files. Restore the file."),
        (
            lambda c: c.update(format=4),
            "A newer version of keras_deit wrote {file}. Upgrade with `pip install -U "
            "keras_deit`. Received: format 4, and this version reads 1 to 3",
        ),
        (
            lambda c: c.update(format="3"),
            "'format' in {file} must be an integer from 1 to 1,000,000. Restore the file. "
            "Received: '3'",
        ),
        (
            lambda c: c["files"].update({"../secret.json": "0" * 64}),
            "'files' in {file} must be the SHA-256 of files among config.json, model.safetensors, "
            "task.json, head.safetensors, preprocessor.json, labels.json, metadata.json, "
            "README.md, model.weights.h5, task.weights.h5. Restore the file. "
            "Received: {{'../secret.json': "
            "'0000000000000000000000000000000000000000000000000000000000000000', "
            "'README.md': ",
        ),
    ],
)
def test_metadata_of_another_form(saved, change, message):
    _, directory = saved
    edit_json(directory / "metadata.json", change)
    with pytest.raises(ValueError) as caught:
        DeiTImageClassifier.from_preset(directory)
    assert str(caught.value).startswith(message.format(file=directory / "metadata.json"))


def test_a_directory_that_is_not_a_preset(tmp_path):
    with raises(
        f"{tmp_path} is not a preset. A preset has config.json and metadata.json, as "
        "`save_to_preset` writes them, or the config.json of timm or transformers. Found: an empty "
        "directory"
    ):
        DeiTBackbone.from_preset(tmp_path)
    (tmp_path / "cat.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="Found: cat.jpg"):
        DeiTBackbone.from_preset(tmp_path)
    with pytest.raises(ValueError, match="Found: a file"):
        DeiTBackbone.from_preset(tmp_path / "cat.jpg")


@pytest.mark.parametrize("name", ["model.safetensors", "head.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damaged_weights(saved, name, damage):
    _, directory = saved
    file = directory / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
        expected = f"The preset is incomplete: {file} does not exist."
    else:
        if damage == "truncated":
            content = content[: len(content) // 2]
        else:
            content[-100] ^= 1
        file.write_bytes(content)
        expected = f"{file} is truncated or was changed: `metadata.json` has SHA-256 "
    with pytest.raises(ValueError) as caught:
        DeiTImageClassifier.from_preset(directory)
    assert str(caught.value).startswith(expected)
    DeiTImageClassifier.from_preset(directory, load_weights=False)


def test_weights_of_another_architecture(saved):
    _, directory = saved
    edit_json(
        directory / "config.json",
        lambda content: content["config"].update(num_layers=4, use_distillation_token=False),
    )
    with pytest.raises(ValueError) as caught:
        DeiTBackbone.from_preset(directory)
    message = str(caught.value)
    assert message.startswith(f"The weights of preset {str(directory)!r} do not fit the model.")
    assert "Missing: block_3/attention_norm/gamma (8,); " in message
    assert "Unexpected: none" in message
    assert "token_position_embedding/prefix_tokens is (2, 8), not (1, 8)" in message


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (
            "config.json",
            lambda c: c["config"].pop("num_heads"),
            "Missing: num_heads. Unknown: none.",
        ),
        ("config.json", lambda c: c["config"].update(heads=2), "Missing: none. Unknown: heads."),
        ("task.json", lambda c: c.pop("num_classes"), "Missing: num_classes. Unknown: none."),
        ("task.json", lambda c: c.update(backbone={}), "Missing: none. Unknown: backbone."),
    ],
)
def test_configs_with_missing_and_unknown_keys(saved, name, change, expected):
    _, directory = saved
    edit_json(directory / name, change)
    cls = "DeiTBackbone" if name == "config.json" else "DeiTImageClassifier"
    with raises(
        f"{directory / name} must contain the arguments of {cls}. Correct the file, or save the "
        f"preset again. {expected}"
    ):
        DeiTImageClassifier.from_preset(directory)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "{file} is not valid JSON: Expecting property name enclosed in "),
        ("task.json", '{"num_classes": NaN}', "{file} is not valid JSON: NaN is not a number in "),
        ("task.json", '{"a": 1, "a": 2}', "{file} is not valid JSON: 'a' is there twice. Restore "),
        (
            "labels.json",
            "[" * 40 + "]" * 40,
            "{file} is not valid JSON: it has more than 32 values ",
        ),
        ("labels.json", "[" * 9**5, "{file} is not valid JSON: nested too deeply. Restore it, or "),
        ("labels.json", b"\xff", "{file} is not valid JSON: 'utf-8' codec can't decode byte 0xff"),
        (
            "labels.json",
            " " * 2**24 + "1",
            "{file} is larger than 16,777,216 bytes, the most that ",
        ),
        (
            "config.json",
            '{"class_name": "ViT"}',
            "{file} must contain the `config` of a keras_deit>DeiTBackbone. Received: "
            "{{'class_name': 'ViT'}}",
        ),
        (
            "labels.json",
            '["ant"]',
            "{file} must have one label for each of the 5 classes in task.json. Received: 1. To "
            "load the model nevertheless, use `labels=[...]` or `labels=None`.",
        ),
        (
            "labels.json",
            '["ant", 2, "cat", "dog", "eel"]',
            "'labels' in {file} must be a list of 1 to 1,000,000 items, each text. "
            "Restore the file. Received: ['ant', 2, 'cat', "
            "'dog', 'eel']. To load",
        ),
        (
            "preprocessor.json",
            "[]",
            "{file} may contain only a `DeiTImageConverter`. Use `preprocessor=` with your own "
            "layer, or `preprocessor=None`. Received: []",
        ),
    ],
)
def test_files_that_are_not_what_they_should_be(saved, name, content, message):
    _, directory = saved
    file = directory / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    sign(directory)
    with pytest.raises(ValueError) as caught:
        DeiTImageClassifier.from_preset(directory)
    assert str(caught.value).startswith(message.format(file=file))


@pytest.mark.parametrize("name", sorted(FILES - {"metadata.json", "README.md"}))
def test_every_file_that_is_read_is_compared_with_its_checksum(saved, name):
    _, directory = saved
    file = directory / name
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ValueError) as caught:
        DeiTImageClassifier.from_preset(directory)
    assert str(caught.value).startswith(f"{file} is truncated or was changed: `metadata.json` has ")


FULL_DISK = """
import errno, resource, signal, sys
from keras_deit.models import DeiTImageClassifier

directory, most_bytes = sys.argv[1:]
classifier = DeiTImageClassifier.from_preset(directory)
classifier.backbone.set_weights([array + 1 for array in classifier.backbone.get_weights()])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(most_bytes), int(most_bytes)))
try:
    classifier.save_to_preset(directory)
except OSError as error:
    assert error.errno == errno.EFBIG, error
    print("refused")
"""


@pytest.mark.process
@pytest.mark.parametrize("most_bytes", [10, 1000, 5000])
def test_a_disk_that_fills_up_leaves_the_old_preset(most_bytes, saved, rng):
    """HDF5 ended the whole process here."""
    classifier, directory = saved
    x = images(rng)
    command = [sys.executable, "-c", FULL_DISK, directory, str(most_bytes)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (result.returncode, result.stdout) == (0, "refused\n"), result.stderr
    same_arrays(DeiTImageClassifier.from_preset(directory)(x), classifier(x))
    assert [path.name for path in directory.parent.iterdir()] == ["preset"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
@pytest.mark.parametrize("quantized", [False, True])
def test_what_lora_adds_is_saved_in_the_kernels(quantized, rng, tmp_path):
    classifier = randomize(tiny_classifier(), rng)
    if quantized:
        classifier.quantize("int8")
    for layer in (classifier.backbone.blocks[0].attention.qkv, classifier.head.class_head):
        layer.enable_lora(2)
        layer.lora_kernel_b.assign(rng.normal(size=layer.lora_kernel_b.shape))
    classifier.save(tmp_path / "model.keras")  # Keras folds it too
    classifier.save_to_preset(tmp_path / "preset")
    x = images(rng)
    loaded = DeiTImageClassifier.from_preset(tmp_path / "preset")
    same_arrays(loaded(x), keras.saving.load_model(tmp_path / "model.keras")(x))
    # int8 rounds the sum anew.
    np.testing.assert_allclose(
        numpy(loaded(x)), numpy(classifier(x)), atol=0.1 if quantized else 1e-5
    )


def test_a_link_to_a_preset_stays_one(saved, rng):
    classifier, directory = saved
    link = directory.parent / "latest"
    link.symlink_to(directory.name)
    randomize(classifier, rng).save_to_preset(link)
    assert link.is_symlink() and not directory.is_symlink()
    for path in (link, directory):
        same_arrays(DeiTImageClassifier.from_preset(path).get_weights(), classifier.get_weights())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (".", "Saving replaces the whole directory, so it cannot be the current directory or one "),
        ("", "A path must be a non-empty string or a `pathlib.Path`. Received: ''"),
        ("a\0b", "A path must be a non-empty string or a `pathlib.Path`. Received: 'a\\x00b'"),
        ("pre\udcffset", "A path must be valid UTF-8. Received: 'pre\\udcffset'"),
        (5, "A path must be a non-empty string or a `pathlib.Path`. Received: 5"),
    ],
)
def test_a_path_that_no_preset_can_have(path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        tiny_backbone(num_layers=1).save_to_preset(path)
    assert str(caught.value).startswith(message)
    if path != "." and isinstance(path, str):
        with pytest.raises(ValueError) as caught:
            DeiTBackbone.from_preset(path)
        assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


IN_ASCII = """
from keras_deit.models import DeiTImageClassifier

names = ["K\\u00e4fer", "\\u732b", "\\U0001f415"]
preset = "deit_nano_distilled_patch4_32_digits"
classifier = DeiTImageClassifier.from_preset(preset, num_classes=3, labels=names)
for _ in range(2):
    classifier.save_to_preset("digits")
loaded = DeiTImageClassifier.from_preset("digits")
assert loaded.labels == names
print(ascii(loaded.decode_predictions([[1.0, 2.0, 3.0]], top=1)))
"""


@pytest.mark.process
def test_a_system_without_unicode_and_with_warnings_as_errors(tmp_path):
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "PYTHONPATH": os.getcwd(),
    }
    # Imports may warn. NumPy 2.4 warns of every tensor of PyTorch that Keras converts.
    script = f"""
import warnings, keras
warnings.simplefilter("error")
if keras.backend.backend() == "torch":
    warnings.filterwarnings("ignore", "__array__ implementation")
{IN_ASCII}"""
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "\\U0001f415" in result.stdout


@keras.saving.register_keras_serializable("tests")
def squared(x):
    return x * x


def in_a_scope(x):
    return x + 1


@pytest.mark.parametrize("activation", [squared, in_a_scope, "gelu", keras.ops.softmax])
def test_an_activation_of_ones_own_survives(activation, rng, tmp_path):
    with keras.saving.custom_object_scope({"in_a_scope": in_a_scope}):
        classifier = randomize(tiny_classifier(activation=activation), rng)
        classifier.save_to_preset(tmp_path / "preset")
        loaded = DeiTImageClassifier.from_preset(tmp_path / "preset")
    x = images(rng)
    same_arrays(loaded(x), classifier(x))


@keras.saving.register_keras_serializable("tests")
class BackboneWithMore(DeiTBackbone):
    def __init__(self, more=1, **kwargs):
        super().__init__(**kwargs)
        self.more = more

    def get_config(self):
        return {**super().get_config(), "more": self.more}


def test_a_backbone_of_ones_own_class(rng, tmp_path):
    config = {**tiny_backbone().get_config(), "name": None}
    backbone = randomize(BackboneWithMore(more=2, **config), rng)
    backbone.save_to_preset(tmp_path / "preset")
    loaded = BackboneWithMore.from_preset(tmp_path / "preset")
    assert loaded.more == 2
    same_arrays(loaded.get_weights(), backbone.get_weights())
    with raises(
        "A classifier's preset has a `DeiTBackbone`. Change it before saving, or save the model as "
        "a .keras file. Received: a backbone of class BackboneWithMore"
    ):
        DeiTImageClassifier(backbone, 5).save_to_preset(tmp_path / "classifier")
    assert [entry.name for entry in tmp_path.iterdir()] == ["preset"]


def test_what_a_preset_does_not_keep_is_refused_when_it_is_saved(tmp_path):
    preprocessor = DeiTImageConverter((12, 32), crop_ratio=1e-4)
    with raises(
        "'crop_ratio' in the preprocessor must be a number from 0.001 to 1. Change it before "
        "saving, or save the model as a .keras file. Received: 0.0001"
    ):
        tiny_classifier(preprocessor=preprocessor).save_to_preset(tmp_path / "deep" / "preset")
    assert list(tmp_path.iterdir()) == []


def test_an_origin_that_is_no_handle_is_not_kept(tmp_path):
    backbone = tiny_backbone()
    backbone._origin = "mine\nlicense: mit"
    backbone.save_to_preset(tmp_path / "preset")
    assert DeiTBackbone.from_preset(tmp_path / "preset")._origin is None
