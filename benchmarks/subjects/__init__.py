"""What is measured: this package and its peers, with the same weights and their best settings.

A subject is a package in a runtime. Its function takes a `Request` and returns a `Subject`. It
imports its library itself: an ImportError becomes a row that says so.
"""

from benchmarks.errors import NotSupportedError
from benchmarks.subjects.base import Request, Subject, backbone_config, number_of_classes
from benchmarks.subjects.ceiling import ceiling
from benchmarks.subjects.exported import (
    keras_deit_onnxruntime,
    keras_deit_openvino,
    keras_hub_onnxruntime,
    keras_hub_openvino,
    timm_onnxruntime,
    timm_openvino,
)
from benchmarks.subjects.keras_models import keras_cv, keras_deit, keras_hub
from benchmarks.subjects.torch_models import timm, transformers

SUBJECTS = {
    function.__name__: function
    for function in (
        keras_deit,
        keras_deit_openvino,
        keras_deit_onnxruntime,
        keras_hub,
        keras_hub_openvino,
        keras_hub_onnxruntime,
        keras_cv,
        timm,
        timm_openvino,
        timm_onnxruntime,
        transformers,
        ceiling,
    )
}
# Subjects with only one backend: models of PyTorch, and models exported from one backend
# Models from PyTorch keep attention as one operation, which OpenVINO runs as one kernel.
ONLY_BACKEND = {
    "timm": "torch",
    "timm_openvino": "torch",
    "timm_onnxruntime": "torch",
    "transformers": "torch",
    "keras_cv": "tensorflow",
    "keras_deit_openvino": "torch",
    "keras_hub_openvino": "torch",
    "keras_deit_onnxruntime": "tensorflow",
    "keras_hub_onnxruntime": "tensorflow",
}
RUNTIMES = ("openvino", "onnxruntime")  # for exported models


def package_of(subject):
    """The package of the model."""
    for runtime in RUNTIMES:
        subject = subject.removesuffix(f"_{runtime}")
    return subject


def runtime_of(subject, backend):
    """The runtime of an exported model, or the framework."""
    return (
        subject.removeprefix(f"{package_of(subject)}_") if subject.endswith(RUNTIMES) else backend
    )


__all__ = [
    "ONLY_BACKEND",
    "RUNTIMES",
    "SUBJECTS",
    "NotSupportedError",
    "Request",
    "Subject",
    "backbone_config",
    "number_of_classes",
    "package_of",
    "runtime_of",
]
