"""Quantizes exported models to int8 in their own runtimes.

Only the dense layers are quantized, as in Keras. Every runtime has other defaults: these give the
smallest error in docs/quantize.md.
"""

import logging
import math

import numpy as np


def quantize_onnx(path):
    """Replaces an ONNX file by one in int8, whose activations have the range of each input."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    float32 = path.with_suffix(".float32.onnx")
    path.rename(float32)
    quantize_dynamic(
        float32,
        path,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    float32.unlink()


def quantize_openvino(path, batches):
    """Replaces an OpenVINO file by one in int8, whose activations have the ranges that they have on
    batches of images.
    """
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    model = nncf.quantize(
        openvino.Core().read_model(path),
        nncf.Dataset(batches),
        subset_size=len(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
    )
    quantized = path.with_name("quantized.xml")
    openvino.save_model(model, quantized, compress_to_fp16=False)
    # The model is read lazily from the old file, so that one goes only now.
    del model
    for suffix in (".bin", ".xml"):
        quantized.with_suffix(suffix).replace(path.with_suffix(suffix))


def in_batches(images, batch_size):
    """Images in batches of one, or of the model's fixed size, for which some are repeated."""
    size = batch_size or 1
    count = math.ceil(len(images) / size)
    return np.split(np.resize(images, (count * size, *images.shape[1:])), count)
