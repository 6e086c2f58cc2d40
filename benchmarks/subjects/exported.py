"""Models exported and run without their framework, in OpenVINO and ONNX Runtime.

There is one function per runtime, with the same settings for every package, so rows of a runtime
differ only in the package.
"""

import subprocess
import sys

import numpy as np

from benchmarks.environment import worker_environment
from benchmarks.errors import last_error
from benchmarks.export import file_of
from benchmarks.frameworks import Runtime
from benchmarks.subjects.base import Subject, backbone_config, path, random_images, refuse
from benchmarks.subjects.keras_models import refuse_what_keras_hub_lacks
from benchmarks.subjects.torch_models import refuse_what_timm_lacks


def keras_deit_openvino(request):
    return _openvino(request, "keras_deit")


def keras_deit_onnxruntime(request):
    return _onnxruntime(request, "keras_deit")


def keras_hub_openvino(request):
    refuse_what_keras_hub_lacks(request)
    return _openvino(request, "keras_hub")


def keras_hub_onnxruntime(request):
    refuse_what_keras_hub_lacks(request)
    return _onnxruntime(request, "keras_hub")


def timm_openvino(request):
    refuse_what_timm_lacks(request)
    return _openvino(request, "timm")


def timm_onnxruntime(request):
    refuse_what_timm_lacks(request)
    return _onnxruntime(request, "timm")


def _openvino(request, package):
    import openvino

    _refuse_what_an_export_lacks(request)
    core = openvino.Core()
    half = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
    refuse(request, request.dtype == "bfloat16" and half == "f32", "no bfloat16 on this CPU")
    model = core.read_model(_exported(request, package, "openvino"))
    shape = (request.batch_size, *_image_shape(request, package))
    model.reshape(shape)  # a fixed batch size runs faster
    if request.dtype == "int8":
        model = _quantized_by_nncf(model, _as_package_takes(_case_images(request), package), shape)
    # By default, float32 may be rounded to bfloat16. In int8, the operations between products use
    # half precision if the CPU has it.
    precision = "f32" if request.dtype == "float32" else half
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return _subject(request, package, lambda images: compiled(images)[0])


def _quantized_by_nncf(model, images, shape):
    import nncf

    return nncf.quantize(
        model,
        nncf.Dataset([np.resize(images, shape)]),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        # Without SmoothQuant, each layer has one product less, and more predictions on the digits
        # stay the same.
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1)
        ),
    )


def _onnxruntime(request, package):
    import onnxruntime

    _refuse_what_an_export_lacks(request)
    refuse(request, request.dtype == "bfloat16", "no bfloat16 on a CPU")
    file = _exported(request, package, "onnx")
    if request.dtype == "int8":
        file = _quantized_by_onnxruntime(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return _subject(request, package, lambda images: session.run(None, {name: images})[0])


def _quantized_by_onnxruntime(file):
    """Quantizes weights to int8 beforehand and activations dynamically.

    Here this is faster than fixed ranges, and needs no calibration.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = file.with_name(f"{file.stem}_int8.onnx")
    quantize_dynamic(
        file,
        quantized,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    return quantized


def _exported(request, package, format):
    file = file_of(request.folder, package, format)
    if not file.exists():
        arguments = [request.folder, request.preset, package, format]
        made = subprocess.run(
            [sys.executable, "-m", "benchmarks.export", *arguments],
            env=worker_environment(request.backend, "cpu"),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        if made.returncode:
            last = last_error(made.stderr)
            missing = last.startswith(("ImportError", "ModuleNotFoundError"))
            raise (ImportError if missing else RuntimeError)(last)
    return file


def _refuse_what_an_export_lacks(request):
    refuse(request, request.mode != "inference", "inference alone")
    refuse(request, request.device != "cpu", "measured on a CPU alone")
    refuse(request, request.dtype.startswith("mixed_"), "no mixed precision")
    refuse(request, request.dtype in ("float16", "tf32"), f"no {request.dtype}")


def _case_images(request):
    with np.load(path(request, "case.npz")) as case:
        return case["images"]


def _image_shape(request, package):
    height, width, channels = backbone_config(request.folder)["image_shape"]
    return (channels, height, width) if package == "timm" else (height, width, channels)


def _as_package_takes(images, package):
    """Converts the channels_last images of a case to the package's data format."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if package == "timm" else images


def _subject(request, package, call):
    images = random_images(request, _image_shape(request, package))
    answers = "class" if package == "keras_hub" else "mean"
    return Subject(
        Runtime(),
        lambda: call(images),
        lambda images: call(_as_package_takes(images, package)),
        answers,
    )
