"""Folders as timm and transformers write them, made from a classifier of ours. What they hold was
read off their own files.
"""

import json

import numpy as np
from safetensors.numpy import save_file

from keras_deit.presets.pytorch.tensor_names import rules, to_timm
from keras_deit.presets.weights import state_of
from tests.helpers import randomize, tiny_classifier

LABELS = ["ant", "bee", "cat", "dog", "eel"]
SIZES = {
    "image_shape": (32, 48, 3),
    "patch_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 32,
}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def timm_tensors(classifier):
    return to_timm(
        state_of(classifier), rules(classifier.backbone.get_config(), classifier.get_config())
    )


def write_folder(path, tensors, **files):
    """Writes `model.safetensors`, and each of `files` as JSON."""
    path.mkdir(parents=True)
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()},
        path / "model.safetensors",
    )
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def timm_config(architecture, image_size, num_classes, channels=3, **changes):
    """What timm 1.0.31's `save_for_hf` writes."""
    return {
        "architecture": architecture,
        "num_classes": num_classes,
        "num_features": 8,
        "global_pool": "token",
        "model_args": {
            "img_size": list(image_size),
            "num_classes": num_classes,
            "in_chans": channels,
            "global_pool": "token",
        },
        "pretrained_cfg": {
            "tag": "fb_in1k",
            "custom_load": False,
            "input_size": [channels, *image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "crop_mode": "center",
            **IMAGENET,
            "num_classes": num_classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        },
        **changes,
    }


def transformers_config(architecture, backbone, labels=(), **changes):
    """What transformers 5.23.0's `save_pretrained` writes."""
    height, width, channels = backbone.image_shape
    return {
        "architectures": [architecture],
        "attention_probs_dropout_prob": 0.0,
        "dtype": "float32",
        "encoder_stride": 16,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": backbone.hidden_dim,
        **(
            {"id2label": {str(index): label for index, label in enumerate(labels)}}
            if labels
            else {}
        ),
        "image_size": [height, width],
        "initializer_range": 0.02,
        "intermediate_size": backbone.intermediate_dim,
        "layer_norm_eps": 1e-12,
        "model_type": "deit" if architecture.startswith("DeiT") else "vit",
        "num_attention_heads": backbone.num_heads,
        "num_channels": channels,
        "num_hidden_layers": backbone.num_layers,
        "patch_size": list(backbone.patch_size),
        "pooler_act": "tanh",
        "pooler_output_size": backbone.hidden_dim,
        "qkv_bias": True,
        "transformers_version": "5.23.0",
        **changes,
    }


def deit_processor(**changes):
    """What transformers 5.23.0's `DeiTImageProcessor.save_pretrained` writes."""
    return {
        "crop_size": {"height": 12, "width": 32},
        "do_center_crop": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "DeiTImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 15, "width": 40},
        **changes,
    }


def transformers_names(
    tensors, version, model="deit", heads=("cls_classifier", "distillation_classifier")
):
    """timm's tensors as transformers 4 and 5 name them, written out once more, the other way."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            stem = f"{model}.encoder.layer.{index}" if version == 4 else f"{model}.layers.{index}"
            part = rest.rsplit(".", 1)[1]
            if rest.startswith("attn.qkv"):
                thirds = np.split(tensor, 3)
                names = (
                    ("query", "key", "value") if version == 4 else ("q_proj", "k_proj", "v_proj")
                )
                inner = "attention.attention" if version == 4 else "attention"
                renamed.update(
                    {f"{stem}.{inner}.{n}.{part}": third for n, third in zip(names, thirds)}
                )
                continue
            module = {
                "attn.proj": ("attention.output.dense", "attention.o_proj"),
                "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
                "mlp.fc2": ("output.dense", "mlp.fc2"),
                "norm1": ("layernorm_before",) * 2,
                "norm2": ("layernorm_after",) * 2,
            }[rest.rsplit(".", 1)[0]][version - 4]
            renamed[f"{stem}.{module}.{part}"] = tensor
        else:
            start, _, part = name.partition(".")
            renamed[
                {
                    "cls_token": f"{model}.embeddings.cls_token",
                    "dist_token": f"{model}.embeddings.distillation_token",
                    "pos_embed": f"{model}.embeddings.position_embeddings",
                    "patch_embed": f"{model}.embeddings.patch_embeddings.projection.{part.removeprefix('proj.')}",
                    "norm": f"{model}.layernorm.{part}",
                    "head": f"{heads[0]}.{part}",
                    "head_dist": f"{heads[-1]}.{part}",
                }[start]
            ] = tensor
    return renamed


def classifier_of(rng, num_classes=5, **backbone):
    return randomize(
        tiny_classifier(backbone, num_classes=num_classes, labels=None, preprocessor=None), rng
    )


def transformers_folder(path, classifier, architecture, version, **changes):
    model = "deit" if architecture.startswith("DeiT") else "vit"
    heads = (
        ("cls_classifier", "distillation_classifier")
        if "Teacher" in architecture
        else ("classifier",)
    )
    tensors = transformers_names(timm_tensors(classifier), version, model, heads)
    if architecture.endswith("Model"):
        tensors = {
            name.removeprefix(f"{model}."): array
            for name, array in tensors.items()
            if not name.startswith("classifier")
        }
        tensors["pooler.dense.weight"], tensors["pooler.dense.bias"] = (
            np.ones((8, 8), "float32"),
            np.ones(8, "float32"),
        )
    config = transformers_config(architecture, classifier.backbone, LABELS, **changes)
    return write_folder(path, tensors, config=config, preprocessor_config=deit_processor())
