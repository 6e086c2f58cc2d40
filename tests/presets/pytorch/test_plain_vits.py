"""Plain vision transformers of timm and transformers: the logits and tokens of the originals."""

import inspect
import re

import keras
import numpy as np
import pytest

from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from keras_deit.presets.pytorch import timm_architectures
from tests.examples.test_using import torchvision  # noqa: F401
from tests.helpers import numpy

pytestmark = [pytest.mark.backend, pytest.mark.peer]

# One of each kind, with two blocks
TIMM = {
    "vit_tiny_patch16_224": {},  # AugReg, DINO, MAE
    "vit_small_patch32_384": {"img_size": (96, 64)},
    "vit_base_patch8_224": {"img_size": 32, "embed_dim": 96, "num_heads": 4, "mlp_ratio": 2.5},
    "vit_small_patch14_dinov2": {"img_size": 56},
    "flexivit_small": {"img_size": 48, "patch_size": 8},
    "deit3_small_patch16_224": {"img_size": 48, "in_chans": 1},
    "vit_small_patch14_reg4_dinov2": {"img_size": 56},
    "vit_giant_patch14_reg1_tipsv2": {"img_size": 28, "embed_dim": 96, "num_heads": 4},  # SwiGLU
    "vit_medium_patch16_reg4_gap_256": {"img_size": 48, "qk_norm": True},
    "vit_medium_patch16_gap_240": {"img_size": 48},  # no biases of queries, keys and values
    "vit_base_patch32_siglip_256": {"img_size": 96, "embed_dim": 96, "num_heads": 4},
    "vit_base_patch16_siglip_gap_224": {"img_size": 32, "embed_dim": 96, "num_heads": 4},
    "vit_so150m_patch16_reg4_map_256": {"img_size": 32, "embed_dim": 96, "num_heads": 4},
    "vit_base_patch32_clip_224": {"img_size": 64, "embed_dim": 96, "num_heads": 4},
    "vit_base_patch16_clip_quickgelu_224": {"img_size": 32, "embed_dim": 96, "num_heads": 4},
    "vit_intern300m_patch14_448": {"img_size": 28, "embed_dim": 96, "num_heads": 4},
    "vit_small_patch16_dinov3_qkvb": {"img_size": 48},
    "vit_small_plus_patch16_dinov3": {"img_size": 48},
    "eva_large_patch14_196": {"img_size": 28, "embed_dim": 96, "num_heads": 4},
    "vit_giant_patch14_dinov2": {
        "img_size": 28,
        "embed_dim": 96,
        "num_heads": 4,
        "act_layer": "gelu",
        "init_values": 0.0,
    },
}


def randomized(model, rng):
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.tensor(rng.normal(0, 0.1, parameter.shape)))
    return model.eval()


@pytest.mark.parametrize("num_classes", [0, 7])
@pytest.mark.parametrize("name", TIMM)
def test_a_folder_of_timm_has_its_outputs(name, num_classes, rng, tmp_path, torchvision):  # noqa: F811
    import timm
    import torch

    arguments = {"depth": 2, **TIMM[name]}
    model = timm.create_model(name, num_classes=num_classes, **arguments)
    model = randomized(model, rng)
    timm.models.save_for_hf(
        model,
        tmp_path / "timm",
        model_args=arguments,
        model_config={"num_classes": num_classes},
        safe_serialization=True,
    )
    cls = DeiTImageClassifier if num_classes else DeiTBackbone
    ours = cls.from_preset(tmp_path / "timm")
    x = rng.normal(size=(2, *ours.input_shape[1:])).astype("float32")
    with torch.no_grad():
        pixels = torch.tensor(x.transpose(0, 3, 1, 2))
        expected = model(pixels) if num_classes else model.forward_features(pixels)
    np.testing.assert_allclose(numpy(ours(x)), expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["vit_so150m_patch16_reg4_map_256", "eva_large_patch14_196"])
def test_a_new_head_keeps_the_trained_pooling(name, rng, tmp_path, torchvision):  # noqa: F811
    """SigLIP's repositories have pooling and no head."""
    import timm
    import torch

    arguments = {"depth": 1, "img_size": 28, "patch_size": 14, "embed_dim": 96, "num_heads": 4}
    model = randomized(timm.create_model(name, num_classes=0, **arguments), rng)
    timm.models.save_for_hf(
        model,
        tmp_path / "timm",
        model_args=arguments,
        model_config={"num_classes": 0},
        safe_serialization=True,
    )
    ours = DeiTImageClassifier.from_preset(tmp_path / "timm", num_classes=3)
    embedding = keras.Model(ours.input, ours.head.input)
    x = rng.normal(size=(2, 28, 28, 3)).astype("float32")
    with torch.no_grad():
        expected = model(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(numpy(embedding(x)), expected, atol=1e-4)
    ours.save_to_preset(tmp_path / "own")
    again = DeiTImageClassifier.from_preset(tmp_path / "own", num_classes=4)
    embedding = keras.Model(again.input, again.head.input)
    np.testing.assert_allclose(numpy(embedding(x)), expected, atol=1e-4)


def test_pixels_beyond_whole_patches_are_left_out(rng, tmp_path, torchvision):  # noqa: F811
    """As in SigLIP's patches of 14 pixels in images of 384."""
    import timm
    import torch

    arguments = {"depth": 1, "img_size": 30, "patch_size": 14}
    model = randomized(timm.create_model("vit_tiny_patch16_224", num_classes=3, **arguments), rng)
    timm.models.save_for_hf(
        model,
        tmp_path / "timm",
        model_args=arguments,
        model_config={"num_classes": 3},
        safe_serialization=True,
    )
    ours = DeiTImageClassifier.from_preset(tmp_path / "timm")
    assert ours.backbone.image_shape == (28, 28, 3)
    x = rng.normal(size=(2, 30, 30, 3)).astype("float32")
    with torch.no_grad():
        expected = model(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(numpy(ours(x[:, :28, :28])), expected, atol=1e-4)


# What a plain transformer does not have, in names of timm
OTHERS = (
    r"aimv2|beit3|_radio_|_rpn_|_xp_|_18x2_|_dlittle_|_dwee_|_dpwee_|_pwee_|^test_|^vit_.*_relpos|"
    r"_worcester"
)


def constructor_arguments(name, monkeypatch):
    """What timm passes to its constructor, of which no model is built."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    class Reached(Exception):
        pass

    def init(self, **arguments):
        raise Reached(arguments)

    with monkeypatch.context() as patch:
        patch.setattr(VisionTransformer, "__init__", init)
        with pytest.raises(Reached) as reached:
            timm.create_model(name)
    return reached.value.args[0]


def test_every_name_of_timm_means_what_timm_means(torchvision, monkeypatch):  # noqa: F811
    import timm

    names = timm.list_models(module="vision_transformer")
    assert len(names) > 150
    for name in names:
        named = timm_architectures.named_arguments(name)
        if re.search(OTHERS, name):
            assert named is None, name
            continue
        original = {"patch_size": 16, **constructor_arguments(name, monkeypatch)}
        if "GluMlp" in repr(original.get("mlp_layer")):
            original["mlp_layer"] = "swiglu"
            assert original.pop("act_layer").__name__ == "SiLU"
        if "norm_layer" in original:
            original["norm_eps"] = original["norm_layer"].keywords["eps"]
        found = timm_architectures.translated(*named)
        expected = timm_architectures.translated({"data_format": "channels_last"}, original)
        assert normal(found) == normal(expected), name
        zeros = timm_architectures.tensors_of_zeros
        assert zeros(named[1]) == zeros(original), name


def normal(configs):
    """Arguments with the defaults of ours, to compare."""
    backbone, classifier = configs
    parameters = inspect.signature(DeiTBackbone.__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return {**defaults, **backbone}, classifier


TRANSFORMERS = {
    "Dinov2Model": {"layer_norm_eps": 1e-6, "mlp_ratio": 2},
    "ViTForMaskedImageModeling": {"intermediate_size": 80},
    "DeiTForMaskedImageModeling": {"intermediate_size": 80},
    "ViTModel": {"intermediate_size": 80, "qkv_bias": False, "hidden_act": "gelu_new"},
    "Dinov2WithRegistersModel": {"num_register_tokens": 3},
    "Dinov2WithRegistersBackbone": {"num_register_tokens": 3, "use_swiglu_ffn": True},
    "DINOv3ViTModel": {"intermediate_size": 80, "num_register_tokens": 3},
    "DINOv3ViTBackbone": {
        "intermediate_size": 80,
        "use_gated_mlp": True,
        "hidden_act": "silu",
        "key_bias": True,
    },
    "Dinov2ForImageClassification": {"use_swiglu_ffn": True},
    "Dinov2WithRegistersForImageClassification": {"num_labels": 5},
}


@pytest.mark.parametrize("shard_size", ["1GB", "20kB"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_folder_of_transformers_has_its_tokens(name, shard_size, rng, tmp_path):
    import torch
    import transformers

    cls = getattr(transformers, name)
    config = cls.config_class(
        image_size=28,
        patch_size=14,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        encoder_stride=14,
        reshape_hidden_states=False,
        **TRANSFORMERS[name],
    )
    model = randomized(cls(config), rng)
    model.save_pretrained(tmp_path / "saved", max_shard_size=shard_size)
    assert (tmp_path / "saved" / "model.safetensors").exists() == (shard_size == "1GB")
    ours = DeiTBackbone.from_preset(tmp_path / "saved")
    x = rng.normal(size=(2, 28, 28, 3)).astype("float32")
    pixels = torch.tensor(x.transpose(0, 3, 1, 2))
    with torch.no_grad():
        if name.endswith("ForImageClassification"):
            ours = DeiTImageClassifier.from_preset(tmp_path / "saved")
            expected = model(pixels).logits
        elif name.endswith("Backbone"):
            [expected] = model(pixels).feature_maps
        else:
            base = getattr(model, model.base_model_prefix, model)
            base = model if name == "DINOv3ViTModel" else base
            expected = base(pixels).last_hidden_state
    found = numpy(ours(x))
    # transformers' backbones leave out the prefix tokens.
    np.testing.assert_allclose(found[:, -expected.shape[1] :], expected.numpy(), atol=1e-4)
