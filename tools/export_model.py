"""Exports a classifier to a file of another runtime, and checks it there.

    pip install ".[export]"
    python tools/export_model.py --format saved_model --preset deit_tiny_distilled_patch16_224
    --output deit --raw_image_size any python tools/export_model.py --format onnx --preset
    deit_tiny_distilled_patch16_224 --output deit.onnx --attention_scores python
    tools/export_model.py --format litert --preset my_preset --output deit.tflite --raw_image_size
    480,640 --int8 python tools/export_model.py --format openvino --preset my_preset --output
    deit.xml --batch_size 8 --photographs a.jpg,b.jpg

The input is `images`: what the preset's preprocessor makes of photographs, float32, or with
--raw_image_size the photographs, uint8. The outputs are `logits` and, with --attention_scores,
`block_0`, `block_1`, ... What was written is loaded in its own runtime and compared with Keras on
--photographs or, without, on smooth noise of a fixed seed; at most 1e-4 apart, it is moved to
--output, which must not exist. The preset's labels are in a text file beside it. Prints a row of
the table in docs/export.md, which says how to load each format without this package.
"""

import importlib.util
import math
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags, logging
from keras import ops

from keras_deit.layers import DeiTImageConverter
from keras_deit.models import DeiTImageClassifier
from keras_deit.visualization import read_photograph


def load_saved_model(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))  # its variables live as long as it does

    def run(images):
        # The signature that TensorFlow Serving calls.
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
            "Mobile delegates take tensors of rank 4 at most. The file has others: "
            f"{', '.join(large)}"
        )
    run = interpreter.get_signature_runner()
    return lambda images: run(images=images)


def load_openvino(path):
    import openvino

    # By default it may compute in bfloat16.
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images):
        outputs = model(images)
        return {output.any_name: outputs[output] for output in model.outputs}

    return run


class Format(NamedTuple):
    suffix: str  # none: a folder
    packages: tuple
    load: Callable  # from a path to a function from images to {name of the output: array}


FORMATS = {
    "saved_model": Format("", (), load_saved_model),
    "onnx": Format(".onnx", ("tf2onnx", "onnxruntime"), load_onnx),
    "litert": Format(".tflite", ("ai_edge_litert",), load_litert),
    "openvino": Format(".xml", ("openvino",), load_openvino),
}
ANY = "any"
LARGEST_SIDE = 8192
TOLERANCE = 1e-4
INT8_TOLERANCE = 0.1  # of the largest value; on the digits 0.02, with the same predictions
TIMED_CALLS = 20

FLAGS = flags.FLAGS
flags.DEFINE_enum("format", None, list(FORMATS), "What to write.", required=True)
flags.DEFINE_string("preset", None, "Handle of a preset.", required=True)
flags.DEFINE_string(
    "output",
    None,
    "A folder, or a file .onnx, .tflite or .xml (with a .bin beside it).",
    required=True,
)
flags.DEFINE_string(
    "raw_image_size",
    None,
    "Take raw images: HEIGHT,WIDTH, or any for saved_model. Default: converted images.",
)
flags.DEFINE_integer("batch_size", None, "Images in a call. Default: any number.", 1)
flags.DEFINE_bool("attention_scores", False, "Give the attention scores of every block, too.")
flags.DEFINE_bool("int8", False, "Keep the weights in 8 bits; for litert.")
flags.DEFINE_bool(
    "load_weights", True, "Start from the preset's weights; without, size and speed are the same."
)
flags.DEFINE_list("photographs", [], "Images to compare with Keras on.")


def check_flags():
    """What can be refused before anything is loaded."""
    format, output = FORMATS[FLAGS.format], output_path()
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "Models are exported from TensorFlow, whichever backend trained them: start again with "
            "KERAS_BACKEND=tensorflow. "
            f"Received: KERAS_BACKEND={keras.backend.backend()}"
        )
    missing = [package for package in format.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f'--format {FLAGS.format} takes {" and ".join(missing)}: pip install ".[export]".'
        )
    if format.suffix and output.suffix != format.suffix:
        raise ValueError(
            f"--format {FLAGS.format} writes a file that ends in {format.suffix}. Received: "
            f"--output {output}"
        )
    weights = [output.with_suffix(".bin")] if FLAGS.format == "openvino" else []
    for path in (output, *weights, labels_file(output)):
        if path.exists():
            raise ValueError(f"{path} exists. Give another --output, or remove it first.")
    if FLAGS.int8 and FLAGS.format != "litert":
        raise ValueError(f"--int8 is for --format litert. Received: --format {FLAGS.format}")
    if FLAGS.raw_image_size == ANY and FLAGS.format != "saved_model":
        raise ValueError(
            "--raw_image_size any is for --format saved_model: give HEIGHT,WIDTH. Received: "
            f"--format {FLAGS.format}"
        )


def output_path():
    return pathlib.Path(os.path.expanduser(FLAGS.output))


def labels_file(output):
    """deit.onnx.labels.txt beside deit.onnx."""
    return output.with_name(f"{output.name}.labels.txt")


def read_size(text):
    """`None`, `ANY`, or (height, width)."""
    if text in (None, ANY):
        return text
    sides = text.split(",")
    if len(sides) != 2 or not all(
        side.isdecimal() and 1 <= int(side) <= LARGEST_SIDE for side in sides
    ):
        raise ValueError(
            f"--raw_image_size is HEIGHT,WIDTH, each from 1 to {LARGEST_SIDE} pixels, such as "
            f"480,640. Received: {text}"
        )
    return tuple(map(int, sides))


def load_classifier():
    classifier = DeiTImageClassifier.from_preset(
        FLAGS.preset, load_weights=FLAGS.load_weights, dtype="float32"
    )
    converter = classifier.preprocessor
    if FLAGS.raw_image_size and not isinstance(converter, DeiTImageConverter):
        raise ValueError(
            "--raw_image_size takes a preset with a `DeiTImageConverter` as its preprocessor. Save "
            "it with one, or leave the flag out. "
            f"Received: preprocessor={converter!r}"
        )
    if FLAGS.photographs and converter is None:
        raise ValueError(
            f"{FLAGS.preset} does not say how photographs are converted for it. Leave "
            "--photographs out, or save it with a `preprocessor`."
        )
    return classifier


def named_outputs(classifier):
    """The classifier as a model whose outputs have the names of the file's."""
    if not FLAGS.attention_scores:
        return keras.Model(classifier.input, {"logits": classifier.output})
    both = classifier.outputs_with_attention_scores
    return keras.Model(classifier.input, {"logits": both["outputs"], **both["attention_scores"]})


def exported_model(classifier, model, size):
    """`model` behind the input of the file."""
    shape, converter = classifier.backbone.image_shape, classifier.preprocessor
    if size is None:
        images = keras.Input(shape, FLAGS.batch_size, "float32", name="images")
        outputs = model(images)
    else:
        sides = (None, None) if size == ANY else size
        shape = (
            (shape[0], *sides) if converter.data_format == "channels_first" else (*sides, shape[2])
        )
        images = keras.Input(shape, FLAGS.batch_size, "uint8", name="images")
        outputs = model(converter(images) if size == ANY else converter.for_size(*size)(images))
    return keras.Model(images, outputs)


def images_to_compare(classifier, size):
    """Batches of images for the file, which between them have all photographs."""
    shape, converter = classifier.backbone.image_shape, classifier.preprocessor
    first = classifier.backbone.data_format == "channels_first"
    channels = shape[0 if first else 2]
    if converter is None:
        photographs = [np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")]
    else:
        photographs = [
            read_photograph(path, channels) for path in FLAGS.photographs
        ] or smooth_noise(channels)
        if size not in (None, ANY):
            photographs = [resized(photograph, size) for photograph in photographs]
        photographs = [
            (image.transpose(2, 0, 1) if first else image)[None] for image in photographs
        ]
        if size is None:
            photographs = [ops.convert_to_numpy(converter(image)) for image in photographs]
    # Raw images may differ in size.
    groups = photographs if size == ANY else [np.concatenate(photographs)]
    return [batch for images in groups for batch in batches(images)]


def batches(images):
    """Of the size of the file, images repeated to fill it; or, if it takes any, one image and
    several.
    """
    if FLAGS.batch_size is None:
        return [images[:1], repeated(images, len(images) + 1)]
    count = math.ceil(len(images) / FLAGS.batch_size)
    return np.split(repeated(images, count * FLAGS.batch_size), count)


def repeated(images, count):
    return np.resize(images, (count, *images.shape[1:]))


def smooth_noise(channels):
    """Two pictures, always the same."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 12, 16, channels))
    return [resized(image, (360, 480)) for image in noise]


def resized(image, size):
    """(H, W, C), 0 to 255, to (*size, C) uint8."""
    image = ops.image.resize(image, size, "bicubic", antialias=True, data_format="channels_last")
    return np.clip(np.rint(ops.convert_to_numpy(image)), 0, 255).astype("uint8")


def compare(run, expect, images):
    """Largest |difference| of an output, as a share of `TOLERANCE` or `INT8_TOLERANCE` too, and the
    share of equal predictions.
    """
    differences, shares, same = [], [], []
    for batch in images:
        found, expected = run(batch), expect(batch)
        for name in expected:
            difference = np.abs(found[name] - expected[name]).max()
            differences.append(difference)
            shares.append(
                difference
                / (INT8_TOLERANCE * np.abs(expected[name]).max() if FLAGS.int8 else TOLERANCE)
            )
        same.extend(found["logits"].argmax(axis=-1) == expected["logits"].argmax(axis=-1))
    # NumPy's maximum keeps what is not a number.
    return np.max(differences), np.max(shares), np.mean(same)


def milliseconds(run, images):
    """Median of an image."""
    seconds = []
    for _ in range(TIMED_CALLS):
        start = time.perf_counter()
        run(images)
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds) / len(images)


def write(model, path):
    options = {}
    if FLAGS.format == "litert":
        import tensorflow as tf

        # Without TensorFlow's own operators (Flex): the converter fails if it would take one.
        options["target_spec"] = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
        options["optimizations"] = [tf.lite.Optimize.DEFAULT] if FLAGS.int8 else []
    try:
        # The signature that Keras makes of a model forgets a fixed batch.
        signature = [
            keras.InputSpec(image.dtype, image.shape, name=image.name) for image in model.inputs
        ]
        if FLAGS.format == "saved_model":
            # Keras 3.15's `model.export` writes every weight twice.
            archive = keras.export.ExportArchive()
            archive.add_endpoint("serve", model, signature)
            archive.write_out(str(path), verbose=False)
        else:
            model.export(
                str(path), format=FLAGS.format, verbose=False, input_signature=signature, **options
            )
        return FORMATS[FLAGS.format].load(path)
    except Exception as error:  # four writers and four readers, with errors of their own
        # LiteRT's converter adds the whole graph
        why = textwrap.shorten(f"{type(error).__name__}: {error}", 1000)
        raise ValueError(f"{FLAGS.format} could not be written and read. {why}") from error


def export(size):
    """Writes --output whole or not at all, and returns a row of the table."""
    classifier = load_classifier()
    model = named_outputs(classifier)
    images = images_to_compare(classifier, size)

    def expect(batch):
        outputs = model(batch if size is None else classifier.preprocessor(batch))
        return keras.tree.map_structure(ops.convert_to_numpy, outputs)

    output = output_path().absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    work = pathlib.Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        run = write(exported_model(classifier, model, size), work / output.name)
        difference, share, same = compare(run, expect, images)
        if not share <= 1:
            limit = (
                f"{INT8_TOLERANCE:.0%} of the largest value" if FLAGS.int8 else f"{TOLERANCE:.0e}"
            )
            raise ValueError(
                f"{FLAGS.format} answers otherwise than Keras: the largest difference, "
                f"{difference:.1e}, is above {limit}."
            )
        mebibytes = sum(file.stat().st_size for file in work.rglob("*") if file.is_file()) / 2**20
        row = [
            label(size),
            f"{mebibytes:.1f}",
            f"{milliseconds(run, images[0]):.1f}",
            f"{difference:.1e}",
            f"{same:.0%}",
        ]
        if classifier.labels is not None:
            lines = [" ".join(label.split()) for label in classifier.labels]
            labels_file(work / output.name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        # What belongs to it first
        for path in sorted(work.iterdir(), key=lambda path: path.name == output.name):
            os.rename(path, output.parent / path.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return f"| {' | '.join(row)} |"


def label(size):
    parts = [FLAGS.format, "int8" if FLAGS.int8 else "float32"]
    if size is not None:
        parts.append("raw, any size" if size == ANY else f"raw, {size[0]} x {size[1]}")
    if FLAGS.attention_scores:
        parts.append("with scores")
    return ", ".join(parts)


def quiet():
    """Leaves out what TensorFlow and the writers tell of each step, and what Keras' ONNX writer
    asks of NumPy.
    """
    logging.set_verbosity(logging.WARNING)
    warnings.filterwarnings("ignore", "In the future `np.object` will be defined", FutureWarning)


def main(_):
    try:
        check_flags()
        row = export(read_size(FLAGS.raw_image_size))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"Not exported. {error}")
    labels = labels_file(output_path())
    print(f"Wrote {FLAGS.output}{f' and {labels}' if labels.exists() else ''}")
    print("| format | MiB | ms per image | largest difference | same top-1 |")
    print("| --- | --- | --- | --- | --- |")
    print(row)


if __name__ == "__main__":
    quiet()
    app.run(main)
