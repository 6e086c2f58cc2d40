"""Writes the weights, images and outputs that all subjects of a run share, in its own process.

keras_deit/        preset directory
transformers/      the same weights in transformers' format
timm.safetensors   the same weights in timm's format
case.npz           two images and the logits of each head, from this package in float32

tools/parity.py compares these logits with transformers' for every architecture.
"""

import json
import pathlib
import sys

import keras
import numpy as np
import safetensors.numpy

from keras_deit import presets
from keras_deit.models import DeiTImageClassifier


def write_case(folder, preset, image_size=None, num_layers=None):
    """Writes a case; `image_size` (pixels) and `num_layers` default to those of the preset."""
    overrides = {}
    if image_size is not None:
        overrides["image_shape"] = (image_size, image_size, 3)
    if num_layers is not None:
        overrides["num_layers"] = num_layers
    classifier = DeiTImageClassifier.from_preset(
        preset, load_weights=False, dtype="float32", **overrides
    )
    rng = np.random.default_rng(0)
    tensors = {
        name: _draw(rng, name, array.shape)
        for name, array in presets.timm_tensors(classifier).items()
    }
    presets.assign_tensors(classifier, tensors, source="random weights")
    folder = pathlib.Path(folder)
    classifier.save_to_preset(folder / "keras_deit")
    safetensors.numpy.save_file(tensors, folder / "timm.safetensors")
    _write_transformers(folder / "transformers", classifier)
    images = rng.normal(size=(2, *classifier.backbone.image_shape)).astype("float32")
    heads = keras.Model(classifier.input, {"mean": classifier.output, **classifier.token_logits})
    logits = {
        name: keras.ops.convert_to_numpy(tensor)
        for name, tensor in heads.predict_on_batch(images).items()
    }
    np.savez(folder / "case.npz", images=images, **logits)


def _draw(rng, name, shape):
    """Random values, at a scale where every weight matters."""
    if len(shape) > 1:
        return rng.normal(0.0, np.prod(shape[1:]) ** -0.5, shape).astype("float32")
    return rng.normal(float("norm" in name and name.endswith("weight")), 0.1, shape).astype(
        "float32"
    )


def _write_transformers(folder, classifier):
    backbone = classifier.backbone
    if backbone.layer_scale_init_value is not None:
        return  # transformers has no DeiT III
    folder.mkdir()
    safetensors.numpy.save_file(
        presets.transformers_tensors(classifier), folder / "model.safetensors", {"format": "pt"}
    )
    distilled = backbone.use_distillation_token
    config = {
        "architectures": [
            "DeiTForImageClassificationWithTeacher" if distilled else "ViTForImageClassification"
        ],
        "model_type": "deit" if distilled else "vit",
        "hidden_size": backbone.hidden_dim,
        "num_hidden_layers": backbone.num_layers,
        "num_attention_heads": backbone.num_heads,
        "intermediate_size": backbone.intermediate_dim,
        "image_size": backbone.image_shape[0],
        "patch_size": backbone.patch_size[0],
        "layer_norm_eps": backbone.layer_norm_epsilon,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": {str(index): str(index) for index in range(classifier.num_classes)},
        "label2id": {str(index): index for index in range(classifier.num_classes)},
    }
    (folder / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    write_case(sys.argv[1], sys.argv[2], *(int(value) or None for value in sys.argv[3:]))
