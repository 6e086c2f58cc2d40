"""Exports a package's model with the weights of a case, in its own process.

So the process that measures the exported file does not load the framework.

    KERAS_BACKEND=torch python -m benchmarks.export FOLDER PRESET timm openvino
"""

import pathlib
import sys

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}


def file_of(folder, package, format):
    return pathlib.Path(folder) / f"exported_{package}{SUFFIXES[format]}"


def export(folder, preset, package, format):
    """Exports as users of the package do."""
    file = file_of(folder, package, format)
    if package == "timm":
        _export_timm(folder, preset, format, file)
    else:
        _keras_model(folder, package).export(str(file), format=format, verbose=False)


def _keras_model(folder, package):
    import numpy as np

    if package == "keras_hub":
        import keras_hub

        folder = f"{folder}/transformers"
        model = keras_hub.models.DeiTImageClassifier.from_preset(folder, preprocessor=None)
    else:
        from keras_deit.models import DeiTImageClassifier

        model = DeiTImageClassifier.from_preset(f"{folder}/keras_deit", preprocessor=None)
    # PyTorch cannot trace a convolution whose kernel requires a gradient.
    model.trainable = False
    # Keras 3.15 cannot export a model before its first call.
    model(np.zeros((1, *model.input.shape[1:]), "float32"))
    return model


def _export_timm(folder, preset, format, file):
    import torch

    from benchmarks.subjects.torch_models import timm_model

    model = timm_model(folder, preset).eval()
    size = model.patch_embed.img_size
    images = torch.zeros((2, 3, *size))  # two, because a batch of one would become a fixed size
    if format == "openvino":
        import openvino

        converted = openvino.convert_model(model, example_input=images)
        openvino.save_model(converted, file, compress_to_fp16=False)
    else:
        dynamic = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(
            model, (images,), file, dynamic_shapes=dynamic, dynamo=True, verbose=False
        )


if __name__ == "__main__":
    export(*sys.argv[1:])
