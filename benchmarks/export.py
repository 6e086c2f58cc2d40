"""Exports a case's classifier, in a process of its own so that the runtimes that read it carry no TensorFlow.

KERAS_BACKEND=tensorflow python -m benchmarks.export FOLDER onnx
KERAS_BACKEND=torch python -m benchmarks.export FOLDER openvino
"""

import pathlib
import sys

import numpy as np

from keras_deit.models import DeiTImageClassifier

NAMES = {"onnx": "exported.onnx", "openvino": "exported.xml"}


def export(folder, format):
    folder = pathlib.Path(folder)
    classifier = DeiTImageClassifier.from_preset(folder / "keras_deit", preprocessor=None)
    classifier(np.zeros((1, *classifier.backbone.image_shape), "float32"))  # Keras 3.15 exports no model that was never called
    classifier.export(str(folder / NAMES[format]), format=format, verbose=False)


if __name__ == "__main__":
    export(sys.argv[1], sys.argv[2])
