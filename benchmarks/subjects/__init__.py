"""What is measured: this package and its peers, each made from the same weights and run at its best setting.

A subject's function takes the run's `Request` and returns a `Subject`. It imports its library itself: an ImportError becomes a row that
says so.
"""

from benchmarks.subjects.base import NotSupportedError, Request, Subject, backbone_config, number_of_classes
from benchmarks.subjects.ceiling import ceiling
from benchmarks.subjects.exported import onnxruntime, openvino
from benchmarks.subjects.keras_models import keras_cv, keras_deit, keras_hub
from benchmarks.subjects.torch_models import timm, transformers

SUBJECTS = {
    function.__name__: function
    for function in (keras_deit, openvino, onnxruntime, keras_hub, keras_cv, timm, transformers, ceiling)
}
# Where a subject runs on one backend alone: PyTorch's own models, and what is exported from one. OpenVINO finds attention in what comes
# from PyTorch, where it is one operation, and runs it as one.
ONLY_BACKEND = {
    "timm": "torch",
    "transformers": "torch",
    "keras_cv": "tensorflow",
    "openvino": "torch",
    "onnxruntime": "tensorflow",
}

__all__ = ["ONLY_BACKEND", "SUBJECTS", "NotSupportedError", "Request", "Subject", "backbone_config", "number_of_classes"]
