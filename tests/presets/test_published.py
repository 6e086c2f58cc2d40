"""Published weights by name, through the real client of the hub."""

import ast
import dataclasses
import hashlib
import os
import re
import socket
import subprocess
import sys
import types

import numpy as np
import pytest
from safetensors.numpy import save

from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from keras_deit.presets import catalog, handles
from tests.helpers import images, numpy, randomize, tiny_classifier
from tests.hub_layouts import timm_tensors
from tests.hub_server import COMMIT

NAME, PLAIN = "deit_tiny_distilled_patch16_32", "deit3_tiny_patch16_32"


@pytest.fixture
def published(hub, monkeypatch, rng):
    """Two published models of two pixels' width, and what their weights say: {name: classifier}."""
    monkeypatch.setitem(catalog.SIZES, "tiny", (2, 2, 8))
    rows = [
        catalog.Architecture("deit", "tiny", 16, 32, 0, 0.0, 0.0, distilled=True),
        catalog.Architecture("deit3", "tiny", 16, 32, 0, 0.0, 0.0),
    ]
    rows = {row.name: row for row in rows}
    monkeypatch.setattr(handles, "ARCHITECTURES", types.MappingProxyType(rows))
    classifiers = {}
    for name, row in rows.items():
        classifier = randomize(DeiTImageClassifier.from_preset(name, load_weights=False), rng)
        hub.files[(row.timm_repository, "model.safetensors")] = save(timm_tensors(classifier))
        classifiers[name] = classifier
    assert set(classifiers) == {NAME, PLAIN}
    return classifiers


def repository(name):
    return handles.ARCHITECTURES[name].timm_repository


@pytest.mark.parametrize("name", [NAME, PLAIN])
def test_loads_classifier_and_backbone(name, published, rng):
    x = images(rng, shape=(32, 32, 3))
    classifier = DeiTImageClassifier.from_preset(name)
    np.testing.assert_array_equal(numpy(classifier(x)), numpy(published[name](x)))
    assert classifier.preprocessor.crop_ratio == (1.0 if name == PLAIN else 0.875)
    backbone = DeiTBackbone.from_preset(name)
    np.testing.assert_array_equal(numpy(backbone(x)), numpy(published[name].backbone(x)))


def test_the_second_load_comes_from_the_cache_without_a_request(published, hub, monkeypatch):
    from huggingface_hub import constants

    DeiTBackbone.from_preset(NAME)
    assert [method for method, _ in hub.requests] == ["HEAD", "GET"]
    hub.requests.clear()
    hub.faults[(repository(NAME), "model.safetensors")] = "hang"
    DeiTBackbone.from_preset(NAME)
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    DeiTBackbone.from_preset(NAME)
    assert hub.requests == []
    with pytest.raises(
        ConnectionError, match="is not in the cache and cannot be downloaded. Check the connection"
    ):
        DeiTBackbone.from_preset(PLAIN)


def test_a_hub_that_does_not_answer_is_asked_once(published, hub, monkeypatch):
    """The client would ask seven times in half a minute, and for each file."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ConnectionError) as caught:
            DeiTImageClassifier.from_preset(NAME)
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()
    assert re.fullmatch(
        f"model.safetensors of '{repository(NAME)}' on the Hugging Face Hub is not in the cache "
        "and cannot be downloaded. Check the "
        f"connection, HF_ENDPOINT and HF_HUB_OFFLINE. {constants.ENDPOINT} does not answer: .*",
        str(caught.value),
    )


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (
            "hang",
            ConnectionError,
            "The download of model.safetensors of .* failed: timed out. Load again: the download "
            "resumes",
        ),
        ("forbidden", ValueError, "is gated"),
        (
            "cut",
            ConnectionError,
            "The download of model.safetensors of .* failed: .* Load again: the download resumes.",
        ),
        (
            "altered",
            OSError,
            "is wrong: expected SHA-256 [0-9a-f]{64}, received [0-9a-f]{64}. The file was removed "
            "from the cache. Load again.",
        ),
    ],
)
def test_a_fault_is_a_clear_error_and_the_next_load_a_good_model(
    fault, kind, message, published, hub, rng, monkeypatch
):
    # The client's pauses before it tries again
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.faults[(repository(NAME), "model.safetensors")] = fault
    with pytest.raises(kind, match=message):
        DeiTBackbone.from_preset(NAME)
    hub.faults.clear()
    x = images(rng, shape=(32, 32, 3))
    np.testing.assert_array_equal(
        numpy(DeiTBackbone.from_preset(NAME)(x)), numpy(published[NAME].backbone(x))
    )


def test_a_repository_or_a_file_that_is_not_there(published, hub):
    content = hub.files.pop((repository(NAME), "model.safetensors"))
    with pytest.raises(
        ValueError,
        match="Repository .* on the Hugging Face Hub does not exist or is private. Check the name",
    ):
        DeiTBackbone.from_preset(NAME)
    hub.files[(repository(NAME), "pytorch_model.bin")] = content
    with pytest.raises(
        ValueError,
        match=r"model.safetensors of 'timm/.*' on the Hugging Face Hub does not exist\. ",
    ):
        DeiTBackbone.from_preset(NAME)


def test_tensors_of_another_architecture_are_refused_with_both_lists(published, hub):
    hub.files[(repository(NAME), "model.safetensors")] = hub.files[
        (repository(PLAIN), "model.safetensors")
    ]
    with pytest.raises(ValueError) as caught:
        DeiTImageClassifier.from_preset(NAME)
    message = str(caught.value)
    assert (
        "Missing: dist_token (1, 1, 8); head_dist.weight (1000, 8); head_dist.bias (1000,)\n"
        in message
    )
    assert "Unexpected: blocks.0.ls1.gamma (8,); " in message


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_other_numbers_of_channels(channels, published, rng):
    """The sum for one channel; repeated, and scaled so that a gray image keeps its answer, for
    others.
    """
    backbone = DeiTBackbone.from_preset(NAME, image_shape=(32, 32, channels))
    gray = images(rng, shape=(32, 32, 1))
    found = numpy(backbone(np.repeat(gray, channels, axis=-1)))
    expected = numpy(published[NAME].backbone(np.repeat(gray, 3, axis=-1)))
    if channels in (1, 6):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    else:
        kernel = numpy(published[NAME].backbone.patch_embedding.projection.kernel).reshape(
            256, 3, 8
        )
        repeated = np.concatenate([kernel, kernel[:, :1]], axis=1) * 0.75
        np.testing.assert_allclose(
            numpy(backbone.patch_embedding.projection.kernel), repeated.reshape(-1, 8), rtol=1e-6
        )


def test_a_distillation_token_that_was_not_trained_is_asked_for_and_said(published, rng, caplog):
    with caplog.at_level("INFO"):
        backbone = DeiTBackbone.from_preset(PLAIN, use_distillation_token=True)
    assert any(
        message.startswith("The distillation token is not trained: ") for message in caplog.messages
    )
    tokens = numpy(backbone.token_position_embedding.prefix_tokens)
    np.testing.assert_array_equal(tokens[0], tokens[1])
    x = images(rng, shape=(32, 32, 3))
    assert numpy(backbone(x)).shape == (4, 6, 8)


@pytest.mark.process
def test_two_processes_that_load_at_once_both_succeed(hub, rng, tmp_path):
    classifier = randomize(tiny_classifier(), rng)
    classifier.save_to_preset(tmp_path / "own")
    for file in (tmp_path / "own").iterdir():
        hub.files[("someone/own", file.name)] = file.read_bytes()
    hub.faults[("someone/own", "model.safetensors")] = "together"
    script = """
import keras_deit
print(keras_deit.models.DeiTImageClassifier.from_preset("hf://someone/own").head.class_head.bias.numpy().tolist())
"""
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "60",
        "HF_HUB_ETAG_TIMEOUT": "60",
        "PYTHONPATH": os.getcwd(),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0].splitlines()[-1] for process in processes]
    np.testing.assert_allclose(
        ast.literal_eval(outputs[0]), numpy(classifier.head.class_head.bias), rtol=1e-6
    )
    assert outputs[0] == outputs[1]
    methods = [method for method, path in hub.requests if path.endswith("model.safetensors")]
    assert sorted(methods) == ["GET", "HEAD", "HEAD"]


def test_a_pinned_upload_that_has_changed_is_refused(published, hub, monkeypatch):
    rows = dict(handles.ARCHITECTURES)
    weights = hub.files[(repository(NAME), "model.safetensors")]
    pins = {"commit": COMMIT, "sha256": hashlib.sha256(weights).hexdigest()}
    rows[NAME] = dataclasses.replace(rows[NAME], **pins)
    monkeypatch.setattr(handles, "ARCHITECTURES", rows)
    DeiTImageClassifier.from_preset(NAME)
    assert all(f"/resolve/{COMMIT}/" in path for _, path in hub.requests)
    rows[NAME] = dataclasses.replace(rows[NAME], sha256="0" * 64)
    with pytest.raises(ValueError, match=f"its SHA-256 must be {'0' * 64}. If the repository has"):
        DeiTImageClassifier.from_preset(NAME)
    # Whoever names a revision wants that one.
    DeiTImageClassifier.from_preset(NAME, revision="main")
