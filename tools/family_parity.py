"""Measures how far keras_deit differs from timm and transformers, for each family that loads.

    python tools/family_parity.py
    KERAS_BACKEND=jax python tools/family_parity.py
    python tools/family_parity.py --families siglip,dinov3 --output ""

Needs PyTorch, timm and transformers (docs/parity.json was made with 2.13.0, 1.0.31 and 5.24.0). By
default it measures every family on TensorFlow and updates docs/parity.json. It exits with 1 if any
difference is above 1e-4.

Each model has the width of its family's smallest and two blocks. Nothing is downloaded: the weights
are random, with a scale at which every part of the model matters, saved by the other library and
loaded with `from_preset`. For two images it measures the largest |difference| of the logits, of the
attention scores of every block, and of the tokens after every block. Both compute in float32, with
attention in steps. tools/parity.py does the same for every published DeiT.
"""

import dataclasses
import logging
import os
import pathlib
import sys
import tempfile
import types
import unittest.mock

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import parity
import torch
import transformers
from absl import app, flags

from keras_deit.models import DeiTImageClassifier

FLAGS = flags.FLAGS
flags.DEFINE_list("families", None, "Names of families. Default: all.")
NUM_CLASSES = 7


@dataclasses.dataclass(frozen=True)
class Family:
    """A model of timm, by its name, or of transformers, by its class."""

    title: str
    model: str
    arguments: dict


DINOV2 = {"patch_size": 14, "image_size": 70, "hidden_size": 384, "num_attention_heads": 6}
FAMILIES = {
    "augreg": Family("ViT (AugReg, DINO, MAE)", "vit_small_patch16_224", {}),
    "flexivit": Family("FlexiViT", "flexivit_small", {"patch_size": 24, "img_size": 240}),
    "eva": Family("EVA, mean with a norm", "eva_large_patch14_196", {}),
    "gap": Family("ViT without class token, mean", "vit_medium_patch16_gap_240", {}),
    "reg_gap": Family(
        "ViT with registers, mean with a norm", "vit_medium_patch16_reg4_gap_256", {}
    ),
    "map": Family("ViT with attention pooling", "vit_so150m_patch16_reg4_map_256", {}),
    "qk_norm": Family("ViT with qk-norm", "vit_small_patch16_224", {"qk_norm": True}),
    "siglip": Family("SigLIP", "vit_base_patch16_siglip_224", {}),
    "siglip2": Family("SigLIP 2, so400m", "vit_so400m_patch16_siglip_256", {}),
    "clip": Family("CLIP (OpenCLIP)", "vit_base_patch32_clip_224", {}),
    "clip_openai": Family("CLIP (OpenAI)", "vit_base_patch32_clip_quickgelu_224", {}),
    "dinov2": Family("DINOv2", "vit_small_patch14_dinov2", {"img_size": 70}),
    "dinov2_reg": Family(
        "DINOv2 with registers", "vit_small_patch14_reg4_dinov2", {"img_size": 70}
    ),
    "dinov2_giant": Family("DINOv2, giant (SwiGLU)", "vit_giant_patch14_dinov2", {"img_size": 70}),
    "dinov3": Family("DINOv3", "vit_small_patch16_dinov3", {}),
    "dinov3_plus": Family("DINOv3, plus (SwiGLU)", "vit_small_plus_patch16_dinov3_qkvb", {}),
    "transformers_vit": Family("ViT", "ViTForImageClassification", {"hidden_act": "quick_gelu"}),
    "transformers_dinov2": Family("DINOv2", "Dinov2ForImageClassification", DINOV2),
    "transformers_dinov2_reg": Family(
        "DINOv2 with registers",
        "Dinov2WithRegistersForImageClassification",
        {**DINOV2, "use_swiglu_ffn": True},
    ),
    "transformers_dinov3": Family(
        "DINOv3",
        "DINOv3ViTModel",
        {"num_register_tokens": 4, "image_size": 80, "use_gated_mlp": True, "hidden_act": "silu"},
    ),
}


def import_timm():
    """timm, with stand-ins for torchvision if that is not installed: models need none of it."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        for name in ("", ".transforms", ".transforms.functional", ".datasets", ".ops", ".ops.misc"):
            stand_in = unittest.mock.MagicMock(__path__=[], __spec__=None)
            sys.modules[f"torchvision{name}"] = stand_in
        for name in (".models", ".models.feature_extraction"):
            sys.modules[f"torchvision{name}"] = types.ModuleType(f"torchvision{name}")
        sys.modules["torchvision.models.feature_extraction"].create_feature_extractor = None
    import timm

    return timm


def randomize(model, rng):
    """Random weights with which attention is neither uniform nor saturated."""

    def draw(name, shape):
        if any(part in name for part in ("gamma", "lambda")):  # LayerScale
            return rng.uniform(0.1, 1.0, shape)
        if len(shape) == 1:
            return rng.normal(float(name.endswith("weight")), 0.2, shape)
        if "token" in name or "pos" in name or "latent" in name:
            return rng.normal(0.0, 0.5, shape)
        return rng.normal(0.0, np.prod(shape[1:]) ** -0.5, shape)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.tensor(draw(name, parameter.shape)))
    return model.eval()


def of_timm(family, folder, rng):
    """Saves a model of timm; returns the function that computes its outputs, and its image size."""
    timm = import_timm()
    arguments = {"depth": 2, **family.arguments}
    model = randomize(timm.create_model(family.model, num_classes=NUM_CLASSES, **arguments), rng)
    timm.models.save_for_hf(
        model,
        folder,
        model_args=arguments,
        model_config={"num_classes": NUM_CLASSES},
        safe_serialization=True,
    )

    def outputs(images):
        scores = []
        for block in model.blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(
                lambda module, inputs, output: scores.append(output)
            )
        features = model.forward_intermediates(
            images, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
        )
        scores.clear()
        logits = model(images)
        tokens = [_joined(feature) for feature in features]
        return logits, scores, tokens

    channels, *_ = model.default_cfg["input_size"]
    size = family.arguments.get("img_size", model.default_cfg["input_size"][1])
    return outputs, (channels, size, size)


def _joined(feature):
    """timm gives patches and prefix tokens apart where there are any of those."""
    return torch.cat(feature[::-1], dim=1) if isinstance(feature, tuple) else feature


def of_transformers(family, folder, rng):
    cls = getattr(transformers, family.model)
    config = cls.config_class(
        num_hidden_layers=2, num_labels=NUM_CLASSES, attn_implementation="eager", **family.arguments
    )
    model = randomize(cls(config), rng)
    model.save_pretrained(folder)

    def outputs(images):
        found = model(images, output_attentions=True, output_hidden_states=True)
        return found.get("logits"), found.attentions, found.hidden_states[1:]

    return outputs, (3, config.image_size, config.image_size)


def our_outputs(folder, images, has_head):
    """Logits of a preset, unless the other model has none; scores and tokens of each block."""
    overrides = {} if has_head else {"num_classes": NUM_CLASSES}
    classifier = DeiTImageClassifier.from_preset(folder, **overrides)
    backbone = classifier.backbone
    model = keras.Model(
        classifier.input,
        {
            "logits": classifier.output,
            "scores": list(backbone.attention_scores.values()),
            "tokens": list(backbone.block_outputs.values()),
        },
    )
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model.predict_on_batch(images))


def measure(name):
    """{output: largest |difference|} of a family."""
    family, rng = FAMILIES[name], np.random.default_rng(0)
    save = of_timm if family.model[0].islower() else of_transformers
    with tempfile.TemporaryDirectory() as folder:
        reference, shape = save(family, pathlib.Path(folder), rng)
        images = rng.normal(size=(2, *shape)).astype("float32")
        with torch.no_grad():
            logits, scores, tokens = reference(torch.tensor(images))
        found = our_outputs(folder, images.transpose(0, 2, 3, 1), logits is not None)
    expected = {"scores": dict(enumerate(scores)), "tokens": dict(enumerate(tokens))}
    if logits is not None:
        expected["logits"] = logits
    found = {
        key: dict(enumerate(found[key])) if key != "logits" else found[key] for key in expected
    }
    expected = keras.tree.map_structure(lambda tensor: tensor.numpy(), expected)
    return {key: parity.largest_difference(expected[key], found[key]) for key in expected}


def main(_):
    backend, worst = keras.backend.backend(), 0.0
    names = FLAGS.families or list(FAMILIES)
    results = {}
    for name in names:
        differences = measure(name)
        largest = max(differences.values())
        worst = max(worst, largest)
        results[name] = differences
        print(f"{backend} {name}: largest difference {largest:.1e} {differences}", flush=True)
        keras.backend.clear_session(free_memory=True)
    if FLAGS.output:
        update(pathlib.Path(FLAGS.output), backend, results)
    print(f"{backend}: largest difference {worst:.1e} of {len(names)} families")
    sys.exit(0 if worst <= parity.TOLERANCE else 1)


def update(path, backend, results):
    """Adds the results to the file of tools/parity.py."""

    def change(content):
        families = content.setdefault("families", {})
        for name, differences in results.items():
            family = FAMILIES[name]
            entry = families.setdefault(name, {})
            entry.update({"title": family.title, "model": family.model, backend: differences})

    parity.change(path, change)


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("tensorflow").setLevel("ERROR")
    app.run(main)
