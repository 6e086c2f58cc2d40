"""What a run asks of a subject, and what a subject returns."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import numpy as np

from benchmarks.errors import NotSupportedError


@dataclasses.dataclass(frozen=True)
class Request:
    """One subject's part of a run."""

    subject: str  # of SUBJECTS
    preset: str
    mode: str  # inference, training, attention
    backend: str
    dtype: str  # of precision.DTYPES
    jit: bool
    batch_size: int
    device: str  # cpu, gpu, tpu
    image_size: int | None
    num_layers: int | None
    folder: str  # of case.py


@dataclasses.dataclass
class Subject:
    """A step to time, and how to check its outputs."""

    framework: object
    step: Callable  # no arguments; returns what `framework.wait` waits for
    logits: Callable | None  # images (batch_size, H, W, 3) -> array (batch_size, classes)
    answers: str | None  # name of the corresponding logits in the case
    flops: int | None = None  # of a step, if it is not the model's


def backbone_config(folder):
    """Arguments of the `DeiTBackbone` in the folder of a case."""
    return json.loads((pathlib.Path(folder) / "keras_deit" / "config.json").read_text())["config"]


def number_of_classes(folder):
    return json.loads((pathlib.Path(folder) / "keras_deit" / "task.json").read_text())[
        "num_classes"
    ]


def image_size(request):
    return backbone_config(request.folder)["image_shape"][0]


def random_labels(request):
    return np.arange(request.batch_size) % number_of_classes(request.folder)


def random_images(request, shape):
    return np.random.default_rng(1).normal(size=(request.batch_size, *shape)).astype("float32")


def path(request, name):
    return pathlib.Path(request.folder) / name


def refuse(request, condition, what):
    if condition:
        raise NotSupportedError(f"{request.subject}: {what}")
