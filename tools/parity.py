"""Measures how far keras_deit differs from transformers with the same weights.

    python tools/parity.py
    KERAS_BACKEND=jax python tools/parity.py
    python tools/parity.py --presets deit_tiny_patch16_224,deit3_small_patch16_224 --output ""

Needs PyTorch and transformers (docs/parity.json was made with 2.13.0 and 5.23.0). By default it
measures every published architecture on TensorFlow and updates docs/parity.json. It exits with 1 if
any difference is above 1e-4.

Nothing is downloaded: the weights are random, with a scale at which every part of the model matters
and attention is neither uniform nor saturated. They are written as on the Hugging Face Hub (DeiT by
transformers, DeiT III in timm's format) and loaded with `from_preset`. transformers computes in
float32 with its eager attention. It has no DeiT III, so its ViT computes the same function:
LayerScale is multiplied into the weights, and the class token has positions of zero.

For two images, at the published size and at 24 x 16 patches, it measures the largest |difference|
of the logits of each head and of their mean, of the attention scores of every block, and of the
tokens after the last LayerNorm.
"""

import gc
import json
import logging
import os
import pathlib
import sys
import tempfile

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import safetensors.numpy
import torch
import transformers
from absl import app, flags

from keras_deit import presets
from keras_deit.atomic import atomic_file
from keras_deit.models import DeiTImageClassifier

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "presets",
    None,
    "Names of published presets. Default: all but _in21k, which share their architectures.",
)
flags.DEFINE_string(
    "output",
    str(pathlib.Path(__file__).parent.parent / "docs" / "parity.json"),
    "JSON file to update, or empty to write none.",
)

TOLERANCE = 1e-4
GRID = (24, 16)


def random_tensors(model, rng):
    """Random tensors for a model, in timm's format."""
    shapes = {key: array.shape for key, array in presets.timm_tensors(model).items()}

    def draw(key, shape):
        if len(shape) == 1 and "norm" in key and key.endswith("weight"):
            return rng.normal(1.0, 0.2, shape)
        if "gamma" in key:  # LayerScale; trained values lie between 0.01 and 1
            return rng.uniform(0.1, 1.0, shape)
        if len(shape) == 1:
            return rng.normal(0.0, 0.2, shape)
        if key in ("cls_token", "dist_token", "pos_embed"):
            return rng.normal(0.0, 0.5, shape)
        return rng.normal(0.0, np.prod(shape[1:]) ** -0.5, shape)

    return {key: draw(key, shape).astype("float32") for key, shape in shapes.items()}


def reference_model(row, backbone, tensors, image_size):
    """The model of transformers with these weights."""
    arguments = {
        "hidden_size": backbone.hidden_dim,
        "num_hidden_layers": backbone.num_layers,
        "num_attention_heads": backbone.num_heads,
        "intermediate_size": backbone.intermediate_dim,
        "image_size": list(image_size),
        "patch_size": row["patch_size"],
        "num_labels": 1000,
        "layer_norm_eps": 1e-6,
        "attn_implementation": "eager",
    }
    if row["distilled"]:
        model = transformers.DeiTForImageClassificationWithTeacher(
            transformers.DeiTConfig(**arguments)
        )
    else:
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**arguments))
    state = {key: torch.tensor(array) for key, array in transformers_tensors(row, tensors).items()}
    model.load_state_dict(state, strict=True)
    return model.eval()


def transformers_tensors(row, tensors):
    """Converts timm's tensors to those of transformers 5, multiplying LayerScale into the weights.

    This does not use the package's own table of names, because it is what this program checks.
    """
    base = "deit" if row["distilled"] else "vit"
    patches = f"{base}.embeddings.patch_embeddings.projection"
    heads = (
        ("cls_classifier", "distillation_classifier") if row["distilled"] else ("classifier", None)
    )
    tensors = dict(tensors)
    for key in [key for key in tensors if key.endswith("gamma")]:
        gamma = tensors.pop(key).astype("float64")
        block, scale, _ = key.rsplit(".", 2)
        layer = f"{block}.attn.proj" if scale == "ls1" else f"{block}.mlp.fc2"
        for part in ("weight", "bias"):
            array = tensors[f"{layer}.{part}"]
            tensors[f"{layer}.{part}"] = (
                array * gamma.reshape(-1, *[1] * (array.ndim - 1))
            ).astype("float32")
    if row["version"] == "deit3":
        tensors["pos_embed"] = np.concatenate(
            [np.zeros_like(tensors["pos_embed"][:, :1]), tensors["pos_embed"]], axis=1
        )
    modules = {
        "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
    }
    renamed = {}
    for key, array in tensors.items():
        module, _, part = key.rpartition(".")
        if key.startswith("blocks."):
            _, index, module = module.split(".", 2)
            layer = f"{base}.layers.{index}"
            if module == "attn.qkv":
                for name, third in zip("qkv", np.split(array, 3)):
                    renamed[f"{layer}.attention.{name}_proj.{part}"] = third
            else:
                renamed[f"{layer}.{modules[module]}.{part}"] = array
        elif module in ("head", "head_dist"):
            renamed[f"{heads[module == 'head_dist']}.{part}"] = array
        else:
            renamed[
                {
                    "cls_token": f"{base}.embeddings.cls_token",
                    "dist_token": f"{base}.embeddings.distillation_token",
                    "pos_embed": f"{base}.embeddings.position_embeddings",
                    "patch_embed.proj.weight": f"{patches}.weight",
                    "patch_embed.proj.bias": f"{patches}.bias",
                    "norm.weight": f"{base}.layernorm.weight",
                    "norm.bias": f"{base}.layernorm.bias",
                }[key]
            ] = array
    return renamed


def write_folder(folder, row, tensors, reference):
    """Writes the weights as they are on the Hugging Face Hub."""
    if row["version"] == "deit":
        reference.save_pretrained(folder)
        return
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    data = {
        "input_size": [3, row["image_size"], row["image_size"]],
        "crop_pct": 1.0,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    config = {"architecture": row["name"], "num_classes": 1000, "pretrained_cfg": data}
    (folder / "config.json").write_text(json.dumps(config))


def reference_outputs(model, images):
    captured = {}
    model.base_model.register_forward_hook(lambda module, inputs, output: captured.update(output))
    with torch.no_grad():
        outputs = model(torch.tensor(images.transpose(0, 3, 1, 2)), output_attentions=True)
    logits = {"mean": outputs.logits}
    if "cls_logits" in outputs:
        logits |= {"class": outputs.cls_logits, "distillation": outputs.distillation_logits}
    else:
        logits |= {"class": outputs.logits}
    return {
        "logits": {name: tensor.numpy() for name, tensor in logits.items()},
        "attention_scores": {
            f"block_{index}": scores.numpy() for index, scores in enumerate(outputs.attentions)
        },
        "last_hidden_state": captured["last_hidden_state"].numpy(),
    }


def our_outputs(classifier, images):
    backbone = classifier.backbone
    model = keras.Model(
        classifier.input,
        {
            "logits": {"mean": classifier.output, **classifier.token_logits},
            "attention_scores": backbone.attention_scores,
            "last_hidden_state": backbone(backbone.input),
        },
    )
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model.predict_on_batch(images))


def largest_difference(first, second):
    """The largest |difference| of two structures of arrays with the same keys."""
    if isinstance(first, dict):
        if first.keys() != second.keys():
            raise ValueError(f"Cannot compare outputs {sorted(first)} with {sorted(second)}.")
        return max(largest_difference(first[key], second[key]) for key in first)
    if first.shape != second.shape:
        raise ValueError(
            f"Cannot compare an output of shape {first.shape} with one of shape {second.shape}."
        )
    difference = float(np.abs(first.astype("float64") - second.astype("float64")).max())
    if not np.isfinite(difference):
        raise ValueError("An output is NaN or infinite.")
    return difference


def measure(name):
    """The number of parameters of a preset, and {size: {output: largest |difference|}}."""
    row = {"name": name, **DeiTImageClassifier.presets[name]}
    rng = np.random.default_rng(0)
    model = DeiTImageClassifier.from_preset(name, load_weights=False)
    tensors = random_tensors(model, rng)
    published, other = (row["image_size"],) * 2, tuple(side * row["patch_size"] for side in GRID)
    differences = {}
    with tempfile.TemporaryDirectory() as folder:
        reference = reference_model(row, model.backbone, tensors, published)
        write_folder(pathlib.Path(folder), row, tensors, reference)
        for size in (published, other):
            classifier = DeiTImageClassifier.from_preset(folder, image_shape=(*size, 3))
            # transformers resamples positions differently, so it gets ours, which agree with timm
            if size == other:
                positions = presets.timm_tensors(classifier)["pos_embed"]
                reference = reference_model(
                    row, model.backbone, {**tensors, "pos_embed": positions}, size
                )
            images = rng.normal(size=(2, *size, 3)).astype("float32")
            expected, found = reference_outputs(reference, images), our_outputs(classifier, images)
            differences[f"{size[0]}x{size[1]}"] = {
                key: largest_difference(expected[key], found[key]) for key in expected
            }
            parameters = classifier.count_params()
            if size == published:
                counted = parameters
            del classifier, reference, expected, found
            keras.backend.clear_session(free_memory=True)
    return counted, differences


def main(_):
    rows = DeiTImageClassifier.presets
    names = FLAGS.presets or [
        name for name, row in rows.items() if "top1" in row and not row["in21k"]
    ]
    backend = keras.backend.backend()
    results, worst = {}, 0.0
    for name in names:
        parameters, differences = measure(name)
        results[name] = {"parameters": parameters, "differences": differences}
        largest = max(value for outputs in differences.values() for value in outputs.values())
        worst = max(worst, largest)
        print(
            f"{backend} {name}: {parameters:,} parameters, largest difference {largest:.1e} "
            f"{differences}",
            flush=True,
        )
        gc.collect()
        if FLAGS.output:
            update(pathlib.Path(FLAGS.output), backend, results)
    print(f"{backend}: largest difference {worst:.1e} of {len(names)} architectures")
    sys.exit(0 if worst <= TOLERANCE else 1)


def update(path, backend, results):
    """Adds the results to the file, which may have those of other backends and architectures."""
    versions = {
        module.__name__: module.__version__
        for module in (keras, torch, transformers, sys.modules[backend])
    }

    def add(content):
        content.setdefault("backends", {})[backend] = versions
        for name, result in results.items():
            entry = content.setdefault("architectures", {}).setdefault(
                name, {"parameters": result["parameters"], "differences": {}}
            )
            entry["parameters"] = result["parameters"]
            entry["differences"][backend] = result["differences"]

    change(path, add)


def change(path, add):
    """Changes the content of a JSON file in place with the function `add`."""
    content = json.loads(path.read_text()) if path.exists() else {}
    add(content)
    with atomic_file(path) as file:
        file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    # Hides progress bars of files, and TensorFlow's warnings about functions compiled once.
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("tensorflow").setLevel("ERROR")
    app.run(main)
