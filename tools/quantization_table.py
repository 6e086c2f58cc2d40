"""How much does int8 change a model's outputs, with and without smoothing?

    pip install ".[quantize,examples]" && python tools/quantization_table.py

Writes the tables of docs/quantize.md. Four models are quantized, base in Keras and ONNX Runtime
only: the digits model that ships, `deit_base_distilled_patch16_224` with random weights, and both
with planted outliers. These are channels that the LayerNormalizations before attention and MLP
multiply by 20 to 60, and that the next kernel divides again: the model computes the same. They
stand in for the outliers of large trained transformers, which random and small models lack.

Smoothing and OpenVINO calibrate on 32 training images of the digits, or on 4 images of noise. The
errors are those for 360 unseen digits, or for 4 other images of noise. docs/quantization.json keeps
each result, so an interrupted run resumes.
"""

import json
import os
import pathlib
import sys
import tempfile
import warnings

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags
from exporting.formats import FORMATS, write
from exporting.int8 import in_batches
from keras import ops
from keras.quantizers import Int4QuantizationConfig
from markdown_section import write_section
from sklearn.datasets import load_digits

from keras_deit.atomic import atomic_file
from keras_deit.models import DeiTImageClassifier
from keras_deit.quantization import smooth

FLAGS = flags.FLAGS
flags.DEFINE_list("models", ["digits", "digits_outliers", "base_outliers", "base"], "What to run.")
flags.DEFINE_string("output", "docs/quantization.json", "JSON file of the results.")
flags.DEFINE_string("page", "docs/quantize.md", "Page with the tables.")
TITLES = {
    "digits": "The digits model",
    "digits_outliers": "The digits model with planted outliers",
    "base": "Base, random weights",
    "base_outliers": "Base, random weights with planted outliers",
}


def load(name):
    """(classifier, images to calibrate on, images to test on, their labels or `None`)."""
    rng = np.random.default_rng(0)
    if name.startswith("digits"):
        digits = load_digits()
        raw = np.round(digits.images[..., None] * (255 / 16)).astype("uint8")
        classifier = DeiTImageClassifier.from_preset("deit_nano_distilled_patch4_32_digits")
        images = ops.convert_to_numpy(classifier.preprocessor(raw))
        data = images[:32], images[-360:], digits.target[-360:]
    else:
        keras.utils.set_random_seed(0)
        classifier = DeiTImageClassifier.from_preset(
            "deit_base_distilled_patch16_224", load_weights=False
        )
        images = rng.normal(size=(8, 224, 224, 3)).astype("float32")
        data = images[:4], images[4:], None
    if name.endswith("outliers"):
        plant_outliers(classifier, rng)
    return classifier, *data


def plant_outliers(classifier, rng):
    """In each normalised input of a block, 3% of the channels become 20 to 60 times as large."""
    for block in classifier.backbone.blocks:
        for norm, reader in (
            (block.attention_norm, block.attention.qkv),
            (block.mlp_norm, block.mlp.intermediate),
        ):
            channels = norm.gamma.shape[0]
            factors = np.ones(channels, "float32")
            chosen = rng.choice(channels, max(1, channels // 32), replace=False)
            factors[chosen] = rng.uniform(20, 60, len(chosen))
            norm.gamma.assign(norm.gamma * factors)
            norm.beta.assign(norm.beta * factors)
            reader.kernel.assign(reader.kernel / factors[:, None])


def in_keras(**arguments):
    def logits(classifier, calibration, images):
        dense = {"filters": lambda layer: isinstance(layer, keras.layers.Dense)}
        classifier.quantize(**arguments, **dense)
        return ops.convert_to_numpy(classifier(images))

    return logits


def in_runtime(format, quantize=None):
    """The exported model, in int8 as tools/export_model.py writes it or through `quantize`."""

    def logits(classifier, calibration, images):
        inputs = keras.Input(classifier.input.shape[1:], name="images")
        model = keras.Model(inputs, {"logits": classifier(inputs)})
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / f"model{FORMATS[format].suffix}"
            run = write(model, path, format, quantize is None, calibration)
            if quantize is not None:
                quantize(path, calibration)
                run = FORMATS[format].load(path)
            return run(images)["logits"]

    return logits


def static_ranges(path, calibration):
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        batches = iter(in_batches(calibration, 1))

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    quantize_static(
        path,
        path,
        Reader(),
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def int4(block_size):
    return in_keras(config=Int4QuantizationConfig(block_size=block_size))


WAYS = {
    "Keras, int8": in_keras(mode="int8"),
    "ONNX Runtime, int8": in_runtime("onnx"),
    "ONNX Runtime, int8, fixed ranges": in_runtime("onnx", static_ranges),
    "OpenVINO, int8": in_runtime("openvino"),
    "LiteRT, int8": in_runtime("litert"),
    "Keras, int4 weights, blocks of 32": int4(32),
    "Keras, int4 weights, a scale for each channel": int4(None),
}


def measure(name, way, smoothed):
    classifier, calibration, images, labels = load(name)
    expected = ops.convert_to_numpy(classifier(images))
    if smoothed:
        smooth(classifier, calibration)
    found = WAYS[way](classifier, calibration, images)
    error, same = np.abs(found - expected), found.argmax(axis=-1) == expected.argmax(axis=-1)
    result = {
        "largest_error": float(error.max() / np.abs(expected).max()),
        "mean_error": float(error.mean() / np.abs(expected).mean()),
        "same": int(same.sum()),
        "images": len(images),
    }
    if labels is not None:
        result["correct"] = int((found.argmax(axis=-1) == labels).sum())
    return result


def tables(results):
    return "\n\n".join(table(results[name], TITLES[name]) for name in TITLES if results.get(name))


def table(results, title):
    has_labels = any("correct" in result for result in results.values())
    head = ["", "largest error", "mean error", "same class", *(["correct"] if has_labels else [])]
    lines = [f"### {title}", "", line(head), line(["---"] * len(head))]
    for way in WAYS:
        for kind in ("plain", "smoothed"):
            result = results.get(f"{way}, {kind}")
            if result is None:
                continue
            cells = [
                way if kind == "plain" else f"{way}, **smoothed**",
                f"{result['largest_error']:.1%}",
                f"{result['mean_error']:.1%}",
                f"{result['same']} of {result['images']}",
            ]
            lines.append(line(cells + ([f"{result['correct']}"] if has_labels else [])))
    return "\n".join(lines)


def line(cells):
    return f"| {' | '.join(cells)} |"


def main(_):
    warnings.filterwarnings("ignore", "In the future `np.object` will be defined", FutureWarning)
    unknown = set(FLAGS.models) - set(TITLES)
    if unknown:
        sys.exit(f"--models must be of {', '.join(TITLES)}. Received: {', '.join(unknown)}")
    output = pathlib.Path(FLAGS.output)
    results = json.loads(output.read_text()) if output.exists() else {}
    for name in FLAGS.models:
        # For a model as large as base, Keras and one runtime show the effect.
        ways = list(WAYS) if name.startswith("digits") else list(WAYS)[:2]
        for way, smoothed in ((way, smoothed) for way in ways for smoothed in (False, True)):
            key = f"{way}, {'smoothed' if smoothed else 'plain'}"
            if key in results.setdefault(name, {}):
                continue
            results[name][key] = measure(name, way, smoothed)
            print(f"{name}: {key}: {results[name][key]}", flush=True)
            keras.backend.clear_session()
            with atomic_file(output) as file:
                file.write_text(json.dumps(results, indent=1) + "\n")
    write_section(pathlib.Path(FLAGS.page), "quantization", tables(results))


if __name__ == "__main__":
    app.run(main)
