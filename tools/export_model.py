"""Exports a classifier for another runtime, and checks the result there.

    pip install ".[export]"

SavedModel, for raw images of any size:

    python tools/export_model.py --format saved_model --output deit \\
        --preset deit_tiny_distilled_patch16_224 --raw_image_size any

ONNX, with the attention scores as further outputs:

    python tools/export_model.py --format onnx --output deit.onnx \\
        --preset deit_tiny_distilled_patch16_224 --attention_scores

ONNX for images of any size, which the patches divide:

    python tools/export_model.py --format onnx --output deit.onnx \\
        --preset deit_tiny_distilled_patch16_224 --any_image_size

LiteRT in int8, for raw images of one size:

    python tools/export_model.py --format litert --output deit.tflite \\
        --preset my_preset --raw_image_size 480,640 --int8

OpenVINO in int8, for which it needs some of your images:

    pip install ".[quantize]"
    python tools/export_model.py --format openvino --output deit.xml \\
        --preset my_preset --int8 --calibration_images photos

OpenVINO with a fixed batch size, checked on your photographs:

    python tools/export_model.py --format openvino --output deit.xml \\
        --preset my_preset --batch_size 8 --photographs a.jpg,b.jpg

The input `images` is float32, the output of the preset's preprocessor; or, with --raw_image_size,
raw images in uint8. The outputs are `logits` and, with --attention_scores, `block_0`, `block_1`,
...

The written model is loaded in its own runtime and compared with Keras on --photographs, on
--calibration_images, or on fixed smooth noise. If they differ by more than 1e-4, or in int8 by more
than a tenth of the largest value, nothing is written. The preset's labels are written
to a text file beside the model. The program prints a row of the table in docs/export.md, which
explains how to load each format without this package.
"""

import contextlib
import importlib.util
import os
import pathlib
import shutil
import sys
import tempfile
import warnings

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags, logging
from exporting.calibration import find_images
from exporting.comparison import (
    compare,
    images_to_compare,
    milliseconds_per_image,
    read_images,
)
from exporting.formats import FORMATS, write
from exporting.sizes import ANY, read_size
from flag_errors import of_flag
from keras import ops

from keras_deit.data_formats import join_image_shape
from keras_deit.layers import DeiTImageConverter
from keras_deit.models import DeiTImageClassifier
from keras_deit.quantization import smooth

COMPARED = 8  # of the images for calibration, if there are no photographs

FLAGS = flags.FLAGS
flags.DEFINE_enum("format", None, list(FORMATS), "Format to write.", required=True)
flags.DEFINE_string(
    "preset", None, "Name, hf:// address or directory of a classifier.", required=True
)
flags.DEFINE_string(
    "output",
    None,
    "Folder for saved_model; otherwise a file ending in .onnx, .tflite or .xml (with a .bin beside "
    "it).",
    required=True,
)
flags.DEFINE_string(
    "raw_image_size",
    None,
    "Take raw images: HEIGHT,WIDTH, or any (saved_model only). Default: take converted images.",
)
flags.DEFINE_bool("any_image_size", False, "Take converted images of any size.")
flags.DEFINE_integer("batch_size", None, "Fixed batch size. Default: any batch size.", 1)
flags.DEFINE_bool("attention_scores", False, "Also output the attention scores of every block.")
flags.DEFINE_bool("int8", False, "Dense layers in int8 (onnx, litert or openvino).")
flags.DEFINE_string(
    "calibration_images",
    None,
    "Folder of images like those that the model is for, 32 or more. Makes int8 more accurate. "
    "openvino needs it.",
)
flags.DEFINE_bool(
    "load_weights", True, "Load the preset's weights. Without, size and speed are the same."
)
flags.DEFINE_list("photographs", [], "Images for the comparison with Keras.")


def check_flags():
    """Refuses what is wrong before anything is loaded."""
    format, output = FORMATS[FLAGS.format], output_path()
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "Keras exports from TensorFlow only. Start again with KERAS_BACKEND=tensorflow: it "
            "loads presets of every backend. "
            f"Received: KERAS_BACKEND={keras.backend.backend()}"
        )
    check_packages(format.packages, f"--format {FLAGS.format}", "export")
    if format.suffix and output.suffix != format.suffix:
        raise ValueError(
            f"--output must end in {format.suffix} for --format {FLAGS.format}. Received: {output}"
        )
    weights = [output.with_suffix(".bin")] if FLAGS.format == "openvino" else []
    for path in (output, *weights, labels_file(output)):
        if path.exists():
            raise ValueError(f"--output: {path} exists. Remove it or choose another path.")
    if FLAGS.int8 and format.int8_packages is None:
        raise ValueError(
            f"--int8 needs --format onnx, litert or openvino. Received: --format {FLAGS.format}"
        )
    if FLAGS.int8 and FLAGS.format == "openvino" and not FLAGS.calibration_images:
        raise ValueError(
            "--format openvino --int8 needs images to calibrate on. Add --calibration_images "
            "FOLDER."
        )
    if FLAGS.int8:
        check_packages(format.int8_packages, f"--format {FLAGS.format} --int8", "quantize")
    elif FLAGS.calibration_images:
        raise ValueError(
            "--calibration_images is for int8. Add --int8, or leave it out. Received: "
            f"--calibration_images {FLAGS.calibration_images}"
        )
    if FLAGS.calibration_images:
        with of_flag("calibration_images", FLAGS.calibration_images):
            find_images(FLAGS.calibration_images)
    if FLAGS.any_image_size and FLAGS.raw_image_size:
        raise ValueError(
            "--any_image_size takes converted images. Leave out --raw_image_size, whose conversion "
            f"has one size. Received: --raw_image_size {FLAGS.raw_image_size}"
        )
    if FLAGS.raw_image_size == ANY and FLAGS.format != "saved_model":
        raise ValueError(
            "--raw_image_size any needs --format saved_model. Use HEIGHT,WIDTH instead. Received: "
            f"--format {FLAGS.format}"
        )


def check_packages(packages, flag, extra):
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f'{flag} needs {" and ".join(missing)}: `pip install ".[{extra}]"`.')


def output_path():
    return pathlib.Path(os.path.expanduser(FLAGS.output))


def labels_file(output):
    """deit.onnx.labels.txt beside deit.onnx."""
    return output.with_name(f"{output.name}.labels.txt")


@contextlib.contextmanager
def of_float_preset():
    """Says that a preset is quantized, rather than which weights do not fit float32."""
    try:
        yield
    except ValueError as error:
        if "/kernel_scale" not in str(error):
            raise
        raise ValueError(
            "This preset is quantized. Export the one that it was made from; --int8 quantizes it."
        ) from error


def load_classifier():
    with of_flag("preset", FLAGS.preset), of_float_preset():
        options = {"load_weights": FLAGS.load_weights, "dtype": "float32"}
        classifier = DeiTImageClassifier.from_preset(FLAGS.preset, **options)
        if FLAGS.any_image_size:
            backbone = classifier.backbone
            any_size = join_image_shape((None, None), backbone.num_channels, backbone.data_format)
            classifier = DeiTImageClassifier.from_preset(
                FLAGS.preset, image_shape=any_size, **options
            )
    converter = classifier.preprocessor
    if FLAGS.raw_image_size and not isinstance(converter, DeiTImageConverter):
        raise ValueError(
            "--raw_image_size needs a preset with a `DeiTImageConverter` as its preprocessor. Save "
            f"the preset with one, or leave the flag out. Received: preprocessor={converter!r}"
        )
    for flag in ("photographs", "calibration_images"):
        if FLAGS[flag].value and converter is None:
            raise ValueError(
                f"--{flag} needs a preset with a preprocessor. Save the preset with one, or leave "
                f"the flag out. Received: {FLAGS.preset}"
            )
    return classifier


def named_outputs(classifier):
    """The classifier with the outputs' names of the exported model."""
    if not FLAGS.attention_scores:
        return keras.Model(classifier.input, {"logits": classifier.output})
    both = classifier.outputs_with_attention_scores
    return keras.Model(classifier.input, {"logits": both["outputs"], **both["attention_scores"]})


def calibrate(classifier, size):
    """Smooths the classifier. Returns paths of images, and what the exported model gets of them."""
    with of_flag("calibration_images", FLAGS.calibration_images):
        paths = find_images(FLAGS.calibration_images)
        images = np.concatenate(read_images(paths, classifier, size))
    smooth(classifier, images if size is None else classifier.preprocessor(images))
    return paths, images


def exported_model(classifier, model, size):
    """`model` with the input of the exported model."""
    shape, converter = classifier.backbone.image_shape, classifier.preprocessor
    if size is None:
        images = keras.Input(shape, FLAGS.batch_size, "float32", name="images")
        return keras.Model(images, model(images))
    sides = (None, None) if size == ANY else size
    shape = join_image_shape(sides, classifier.backbone.num_channels, converter.data_format)
    images = keras.Input(shape, FLAGS.batch_size, "uint8", name="images")
    converted = converter(images) if size == ANY else converter.for_size(*size)(images)
    return keras.Model(images, model(converted))


def export(size):
    """Writes --output, complete or not at all, and returns a row of the table."""
    classifier = load_classifier()
    photographs, calibration = FLAGS.photographs, None
    if FLAGS.calibration_images:
        paths, calibration = calibrate(classifier, size)
        photographs = photographs or paths[:COMPARED]
    model = named_outputs(classifier)
    images = images_to_compare(classifier, size, photographs, FLAGS.batch_size)

    def expect(batch):
        outputs = model(batch if size is None else classifier.preprocessor(batch))
        return keras.tree.map_structure(ops.convert_to_numpy, outputs)

    output = output_path().absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    # Not `keras_deit.atomic`: an export is one to three files and folders side by side.
    work = pathlib.Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        exported = exported_model(classifier, model, size)
        run = write(exported, work / output.name, FLAGS.format, FLAGS.int8, calibration)
        difference, same = compare(run, expect, images, FLAGS.int8)
        mebibytes = sum(file.stat().st_size for file in work.rglob("*") if file.is_file()) / 2**20
        cells = [
            label(size),
            f"{mebibytes:.1f}",
            f"{milliseconds_per_image(run, images[0]):.1f}",
            f"{difference:.1e}",
            f"{same:.0%}",
        ]
        if classifier.labels is not None:
            lines = [" ".join(label.split()) for label in classifier.labels]
            labels_file(work / output.name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        # The model comes last: once it is there, its weights and labels are, too.
        for path in sorted(work.iterdir(), key=lambda path: path.name == output.name):
            os.rename(path, output.parent / path.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return f"| {' | '.join(cells)} |"


def label(size):
    parts = [FLAGS.format, "int8" if FLAGS.int8 else "float32"]
    if size is not None:
        parts.append("raw, any size" if size == ANY else f"raw, {size[0]} x {size[1]}")
    if FLAGS.any_image_size:
        parts.append("any size")
    if FLAGS.attention_scores:
        parts.append("with scores")
    return ", ".join(parts)


def hide_logs():
    """Hides the logs of TensorFlow and of the writers, and a warning of Keras' ONNX writer."""
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
    hide_logs()
    app.run(main)
