"""The formats of exported models: how to write and to load each."""

import textwrap
from collections.abc import Callable
from typing import NamedTuple

import keras
from exporting.int8 import in_batches, quantize_onnx, quantize_openvino


def load_saved_model(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))  # `run` keeps it, and so its variables, alive

    def run(images):
        # The signature that TensorFlow Serving calls by default
        outputs = loaded.signatures["serving_default"](images=tf.constant(images))
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return run


def load_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images})))


def load_litert(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    large = [
        tensor["name"] for tensor in interpreter.get_tensor_details() if len(tensor["shape"]) > 4
    ]
    if large:
        raise ValueError(
            "Mobile delegates need tensors of rank 4 or less. The file contains others: "
            f"{', '.join(large)}"
        )
    run = interpreter.get_signature_runner()
    return lambda images: run(images=images)


def load_openvino(path):
    import openvino

    # By default, OpenVINO may compute in bfloat16.
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images):
        outputs = model(images)
        return {output.any_name: outputs[output] for output in model.outputs}

    return run


class Format(NamedTuple):
    """
    Args:
        suffix: of the file, or empty for a folder.
        packages: what writing and loading need besides TensorFlow.
        load: function from a path to a function from images to {output name: array}.
        int8_packages: what int8 needs, or `None` if there is no int8.
    """

    suffix: str
    packages: tuple
    load: Callable
    int8_packages: tuple | None = None


FORMATS = {
    "saved_model": Format("", (), load_saved_model),
    "onnx": Format(".onnx", ("tf2onnx", "onnxruntime"), load_onnx, ()),
    "litert": Format(".tflite", ("ai_edge_litert",), load_litert, ()),
    "openvino": Format(".xml", ("openvino",), load_openvino, ("nncf",)),
}


def write(model, path, format, int8=False, calibration=None):
    """Writes a Keras model.

    Args:
        model: functional model with one input, `images`.
        path: `pathlib.Path` of the file or folder.
        format: a key of `FORMATS`.
        int8: bool. Whether dense layers compute in int8.
        calibration: array (batch, ...), inputs of the model; `openvino` needs it for int8.

    Returns:
        The written model: a function from images to {output name: array}.

    Raises:
        ValueError: if the model cannot be written in this format or loaded again.
    """
    options = {}
    if format == "litert":
        import tensorflow as tf

        # Only LiteRT's own operators: the converter fails if it needs TensorFlow's (Flex).
        options["target_spec"] = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
        options["optimizations"] = [tf.lite.Optimize.DEFAULT] if int8 else []
    # Keras' own signature of a model loses a fixed batch size.
    signature = [
        keras.InputSpec(image.dtype, image.shape, name=image.name) for image in model.inputs
    ]
    try:
        if format == "saved_model":
            # `model.export` of Keras 3.15 writes every weight twice.
            archive = keras.export.ExportArchive()
            archive.add_endpoint("serve", model, signature)
            archive.write_out(str(path), verbose=False)
        else:
            model.export(
                str(path), format=format, verbose=False, input_signature=signature, **options
            )
        if int8 and format == "onnx":
            quantize_onnx(path)
        elif int8 and format == "openvino":
            quantize_openvino(path, in_batches(calibration, model.inputs[0].shape[0]))
        return FORMATS[format].load(path)
    except Exception as error:  # of four writers and four runtimes
        # Shortened, because LiteRT's converter appends the whole graph.
        why = textwrap.shorten(f"{type(error).__name__}: {error}", 1000)
        raise ValueError(f"--format {format}: The model cannot be exported. {why}") from error
