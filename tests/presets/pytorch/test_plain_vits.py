"""Plain vision transformers of timm and transformers: the logits and tokens of the originals."""

import numpy as np
import pytest

from keras_deit.models import DeiTBackbone, DeiTImageClassifier
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


TRANSFORMERS = {
    "Dinov2Model": {"layer_norm_eps": 1e-6, "mlp_ratio": 2},
    "ViTForMaskedImageModeling": {"intermediate_size": 80},
    "DeiTForMaskedImageModeling": {"intermediate_size": 80},
    "ViTModel": {"intermediate_size": 80},
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
        **TRANSFORMERS[name],
    )
    model = randomized(cls(config), rng)
    model.save_pretrained(tmp_path / "saved", max_shard_size=shard_size)
    assert (tmp_path / "saved" / "model.safetensors").exists() == (shard_size == "1GB")
    ours = DeiTBackbone.from_preset(tmp_path / "saved")
    x = rng.normal(size=(2, 28, 28, 3)).astype("float32")
    base = getattr(model, model.base_model_prefix, model)
    with torch.no_grad():
        expected = base(torch.tensor(x.transpose(0, 3, 1, 2))).last_hidden_state
    np.testing.assert_allclose(numpy(ours(x)), expected.numpy(), atol=1e-4)
