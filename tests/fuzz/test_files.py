"""Files of presets with anything in them: the model that was saved, or a ValueError."""

import copy
import functools
import hashlib
import json
import pathlib
import shutil
import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from keras_deit.presets.safetensors_file import parse_tensors
from keras_deit.presets.sources import parse_json
from tests.helpers import sign, tiny_classifier
from tests.hub_layouts import deit_processor, timm_tensors, transformers_config, write_folder

SAVED = pathlib.Path(__file__).parents[1] / "saved"
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.sampled_from([10**9, 10**400, -1, 2**63, 1e-300, 1e300]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["../../etc/hostname", "float16", "int8", "eval", "keras_deit>MLP", "\ud800"]),
)
JUNK = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["class_name", "config", "module", "registered_name", "", "a/b", "name"]
            )
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def paths(content, path=()):
    """The paths of all values inside a parsed JSON file."""
    yield path
    if isinstance(content, (dict, list)):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from paths(content[key], (*path, key))


@st.composite
def changed(draw, content):
    """A JSON value with one to three of its values replaced, removed or added."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(paths(content))))
        if not path:
            return draw(JUNK)
        *outer, key = path
        around = functools.reduce(lambda inner, step: inner[step], outer, content)
        how = draw(st.sampled_from(["replace", "remove", "add"]))
        if how == "remove":
            del around[key]
        elif how == "add" and isinstance(around, dict):
            around[draw(st.text(max_size=4))] = draw(JUNK)
        else:
            around[key] = draw(JUNK)
    return content


@st.composite
def damaged(draw, content):
    """Bytes with some of them changed, removed or doubled."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(len(content) - 1, 0)))
        # Headers are at the start, and the most interesting.
        start = min(start, draw(st.sampled_from([16, 200, len(content)])))
        end = start + draw(st.sampled_from([0, 1, 1, 8, 100]))
        content[start:end] = draw(st.binary(max_size=8))
    return bytes(content)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fuzz") / "preset"
    tiny_classifier({"num_layers": 1}).save_to_preset(directory)
    return directory


def loads_or_says_why(directory, cls=DeiTImageClassifier, **overrides):
    try:
        model = cls.from_preset(directory, **overrides)
    except ValueError as error:
        assert 10 < len(str(error)) < 4000
    else:
        assert all(np.isfinite(array).all() for array in model.get_weights())


@given(content=st.binary(max_size=64) | JUNK.map(lambda value: json.dumps(value).encode()))
def test_bytes_are_json_or_not(content):
    try:
        parse_json(content, "config.json")
    except ValueError as error:
        assert str(error).startswith("config.json is not valid JSON: ")


@given(data=st.data())
@pytest.mark.parametrize(
    "name",
    ["config.json", "task.json", "preprocessor.json", "labels.json", "metadata.json"],
)
@pytest.mark.slow
def test_a_changed_json_file_is_harmless(name, saved, data):
    with tempfile.TemporaryDirectory() as folder:
        preset = pathlib.Path(shutil.copytree(saved, pathlib.Path(folder) / "preset"))
        content = data.draw(changed(json.loads((saved / name).read_text())))
        (preset / name).write_text(json.dumps(content))
        if name != "metadata.json":
            sign(preset)
        loads_or_says_why(preset, load_weights=data.draw(st.booleans()))


@given(data=st.data())
@pytest.mark.parametrize("name", ["model.safetensors", "head.safetensors", "config.json"])
@pytest.mark.parametrize("is_signed", [True, False])
def test_a_damaged_file_is_refused(name, is_signed, saved, data):
    with tempfile.TemporaryDirectory() as folder:
        preset = pathlib.Path(shutil.copytree(saved, pathlib.Path(folder) / "preset"))
        (preset / name).write_bytes(data.draw(damaged((saved / name).read_bytes())))
        if is_signed:
            sign(preset)
        loads_or_says_why(preset)


@given(data=st.data())
def test_a_damaged_hdf5_file_is_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        source = SAVED / "v0.1.0" / "preset"
        preset = pathlib.Path(shutil.copytree(source, pathlib.Path(folder) / "preset"))
        content = data.draw(damaged((source / "model.weights.h5").read_bytes()))
        (preset / "model.weights.h5").write_bytes(content)
        metadata = json.loads((preset / "metadata.json").read_text())
        entry = metadata["weights"]["model.weights.h5"]
        entry["sha256"] = hashlib.sha256(content).hexdigest()
        (preset / "metadata.json").write_text(json.dumps(metadata))
        loads_or_says_why(preset, DeiTBackbone)


@given(
    header=st.dictionaries(
        st.text(max_size=4) | st.just("__metadata__"),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "F16", "I8", "BOOL", "F8_E4M3", "F128"]),
                "shape": st.lists(st.integers(-1, 4) | st.just(2**40), max_size=3),
                "data_offsets": st.lists(st.integers(-1, 64), min_size=1, max_size=3),
            }
        )
        | JUNK,
        max_size=3,
    ),
    length=st.none() | st.integers(0, 2**64 - 1),
    data=st.binary(max_size=64),
)
def test_a_header_of_safetensors(header, length, data):
    text = json.dumps(header).encode()
    size = len(text) if length is None else length
    try:
        tensors = parse_tensors(size.to_bytes(8, "little") + text + data, "a.safetensors")
    except ValueError as error:
        assert str(error).startswith("a.safetensors is truncated or not a safetensors file: ")
    else:
        assert sum(array.nbytes for array in tensors.values()) == len(data)


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory):
    classifier = tiny_classifier({"num_layers": 1})
    return write_folder(
        tmp_path_factory.mktemp("fuzz") / "transformers",
        timm_tensors(classifier),
        config=transformers_config(
            "DeiTForImageClassificationWithTeacher", classifier.backbone, [*"abcde"]
        ),
        preprocessor_config=deit_processor(),
    )


@given(data=st.data())
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.slow
def test_a_changed_config_of_transformers_is_harmless(name, transformers_folder, data):
    with tempfile.TemporaryDirectory() as folder:
        copied = pathlib.Path(shutil.copytree(transformers_folder, pathlib.Path(folder) / "copy"))
        content = data.draw(changed(json.loads((transformers_folder / name).read_text())))
        (copied / name).write_text(json.dumps(content))
        loads_or_says_why(copied)


@given(data=st.data())
@pytest.mark.slow
def test_a_changed_config_of_timm_is_harmless(data):
    config = {
        "architecture": "deit_tiny_patch16_224",
        "num_classes": 5,
        "model_args": {"img_size": [32, 16], "in_chans": 1},
        "pretrained_cfg": {
            "input_size": [1, 32, 16],
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": [0.5],
            "std": [0.5],
            "label_names": [*"abcde"],
            "label_descriptions": {"a": "ant"},
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        path = write_folder(pathlib.Path(folder) / "timm", {}, config=data.draw(changed(config)))
        loads_or_says_why(path, load_weights=False, num_layers=1)
