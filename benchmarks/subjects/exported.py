"""This package's model, exported and run without Keras: ONNX Runtime and OpenVINO."""

import os
import subprocess
import sys

import numpy as np

from benchmarks.export import NAMES
from benchmarks.frameworks import Runtime
from benchmarks.subjects.base import Subject, backbone_config, path, random_images, refuse


def openvino(request):
    import openvino

    _refuse_what_an_export_lacks(request)
    core = openvino.Core()
    half = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
    refuse(request, request.dtype == "bfloat16" and half == "f32", "no bfloat16 on this CPU")
    model = core.read_model(_exported(request, "openvino"))
    shape = (request.batch_size, *backbone_config(request.folder)["image_shape"])
    model.reshape(shape)  # a fixed batch is planned once
    if request.dtype == "int8":
        import nncf

        with np.load(path(request, "case.npz")) as case:
            calibration = nncf.Dataset([np.resize(case["images"], shape)])
        model = nncf.quantize(
            model,
            calibration,
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            # Without SmoothQuant: one product less around each layer, and more of the digits' predictions kept.
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1)
            ),
        )
    # By default it may round float32 to bfloat16. In int8, what lies between the products is in half precision where the CPU has it.
    precision = "f32" if request.dtype == "float32" else half
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return _subject(request, lambda images: compiled(images)[0])


def onnxruntime(request):
    import onnxruntime

    _refuse_what_an_export_lacks(request)
    refuse(request, request.dtype == "bfloat16", "no bfloat16 on a CPU")
    file = _exported(request, "onnx")
    if request.dtype == "int8":
        file = _quantized(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return _subject(request, lambda images: session.run(None, {name: images})[0])


def _quantized(file):
    """Weights to int8 beforehand, activations as they come: faster here than with fixed ranges, and nothing to calibrate."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = file.with_name("quantized.onnx")
    quantize_dynamic(
        file,
        quantized,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    return quantized


def _exported(request, format):
    file = path(request, NAMES[format])
    if not file.exists():
        command = [sys.executable, "-m", "benchmarks.export", request.folder, format]
        made = subprocess.run(
            command, env={**os.environ, "KERAS_BACKEND": request.backend}, stderr=subprocess.PIPE, text=True, check=False
        )
        if made.returncode:
            last = made.stderr.strip().splitlines()[-1]
            raise (ImportError if last.startswith(("ImportError", "ModuleNotFoundError")) else RuntimeError)(last)
    return file


def _refuse_what_an_export_lacks(request):
    refuse(request, request.mode != "inference", "inference alone")
    refuse(request, request.device != "cpu", "measured on a CPU alone")
    refuse(request, request.dtype.startswith("mixed_"), "no mixed precision")
    refuse(request, request.dtype == "float16", "no float16")


def _subject(request, call):
    images = random_images(request, backbone_config(request.folder)["image_shape"])
    return Subject(Runtime(), lambda: call(images), call, "mean")
