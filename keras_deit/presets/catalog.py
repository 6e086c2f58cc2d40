"""Every published model, in one table.

Names, sources and figures: facebookresearch/deit at 7e160fe (README_deit.md, README_revenge.md) and
the model cards of timm's repositories on the Hugging Face Hub. Parameters are counted on timm
1.0.31.
"""

import dataclasses
import types

# num_layers, num_heads, hidden_dim; the MLP is 4 times as wide.
SIZES = {
    "tiny": (12, 3, 192),
    "small": (12, 6, 384),
    "medium": (12, 8, 512),
    "base": (12, 12, 768),
    "large": (24, 16, 1024),
    "huge": (32, 16, 1280),
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A row of the table: what distinguishes a published model from the others.

    `top1` is the published accuracy on the ImageNet-1k validation set, in percent; `timm_top1` is
    what timm measured with the same weights and its own crop ratio (results-imagenet.csv).
    """

    version: str  # "deit" or "deit3"
    size: str
    patch_size: int
    image_size: int
    parameters: int
    top1: float
    timm_top1: float
    distilled: bool = False
    in21k: bool = False  # pre-trained on ImageNet-21k
    # Commit of timm's repository and SHA-256 of its model.safetensors, so that a changed upload is
    # refused. `None` is unknown: the newest commit is loaded.
    commit: str | None = None
    sha256: str | None = None

    @property
    def name(self):
        distilled, in21k = "_distilled" * self.distilled, "_in21k" * self.in21k
        return (
            f"{self.version}_{self.size}{distilled}_patch{self.patch_size}_{self.image_size}{in21k}"
        )

    @property
    def timm_repository(self):
        tag = "fb_in22k_ft_in1k" if self.in21k else "fb_in1k"
        return f"timm/{self.name.removesuffix('_in21k')}.{tag}"

    @property
    def transformers_repository(self):
        """facebook's repository, which exists for DeiT but not for DeiT III."""
        return f"facebook/{self.name.replace('_', '-')}" if self.version == "deit" else None

    @property
    def backbone_config(self):
        num_layers, num_heads, hidden_dim = SIZES[self.size]
        config = {
            "image_shape": (self.image_size, self.image_size, 3),
            "patch_size": self.patch_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "hidden_dim": hidden_dim,
            "intermediate_dim": 4 * hidden_dim,
            "use_distillation_token": self.distilled,
            "data_format": "channels_last",
        }
        if self.version == "deit3":
            config.update(
                position_scope="patches", drop_path_schedule="constant", layer_scale_init_value=1e-4
            )
        return config

    @property
    def classifier_config(self):
        return {"num_classes": 1000}

    @property
    def converter_config(self):
        return {
            "image_size": self.image_size,
            "crop_ratio": 1.0 if self.version == "deit3" else 0.875,
        }


_TABLE = (
    Architecture("deit", "tiny", 16, 224, 5_717_416, 72.202, 72.190),
    Architecture("deit", "small", 16, 224, 22_050_664, 79.854, 79.856),
    Architecture("deit", "base", 16, 224, 86_567_656, 81.846, 81.980),
    Architecture("deit", "base", 16, 384, 86_859_496, 82.890, 83.108),
    Architecture("deit", "tiny", 16, 224, 5_910_800, 74.476, 74.538, distilled=True),
    Architecture("deit", "small", 16, 224, 22_436_432, 81.164, 81.204, distilled=True),
    Architecture("deit", "base", 16, 224, 87_338_192, 83.372, 83.384, distilled=True),
    Architecture("deit", "base", 16, 384, 87_630_032, 85.224, 85.438, distilled=True),
    Architecture("deit3", "small", 16, 224, 22_059_496, 81.4, 81.382),
    Architecture("deit3", "small", 16, 384, 22_205_416, 83.4, 83.432),
    Architecture("deit3", "medium", 16, 224, 38_849_512, 83.0, 83.090),
    Architecture("deit3", "base", 16, 224, 86_585_320, 83.8, 83.800),
    Architecture("deit3", "base", 16, 384, 86_877_160, 85.0, 85.088),
    Architecture("deit3", "large", 16, 224, 304_374_760, 84.9, 84.772),
    Architecture("deit3", "large", 16, 384, 304_763_880, 85.8, 85.820),
    Architecture("deit3", "huge", 14, 224, 632_126_440, 85.2, 85.204),
    Architecture("deit3", "small", 16, 224, 22_059_496, 83.1, 83.082, in21k=True),
    Architecture("deit3", "small", 16, 384, 22_205_416, 84.8, 84.846, in21k=True),
    Architecture("deit3", "medium", 16, 224, 38_849_512, 84.5, 84.550, in21k=True),
    Architecture("deit3", "base", 16, 224, 86_585_320, 85.7, 85.728, in21k=True),
    Architecture("deit3", "base", 16, 384, 86_877_160, 86.7, 86.742, in21k=True),
    Architecture("deit3", "large", 16, 224, 304_374_760, 87.0, 86.990, in21k=True),
    Architecture("deit3", "large", 16, 384, 304_763_880, 87.7, 87.736, in21k=True),
    Architecture("deit3", "huge", 14, 224, 632_126_440, 87.2, 87.180, in21k=True),
)

# Read-only, so that no caller can change the catalog for the next one.
ARCHITECTURES = types.MappingProxyType({row.name: row for row in _TABLE})

# Presets that ship inside the package with their weights. This one classifies handwritten digits,
# so it has no ImageNet accuracy.
BUILT_IN = types.MappingProxyType(
    {
        "deit_nano_distilled_patch4_32_digits": {
            "version": "deit",
            "size": "nano",
            "patch_size": 4,
            "image_size": 32,
            "parameters": 206_804,
            "distilled": True,
            "in21k": False,
        }
    }
)

# The content of `Cls.presets`
METADATA = types.MappingProxyType(
    {
        **{name: dataclasses.asdict(row) for name, row in ARCHITECTURES.items()},
        **BUILT_IN,
    }
)


def published(handle):
    """The row of a published model, or `None`.

    Args:
        handle: a built-in name, or `"hf://..."` with timm's or facebook's repository.
    """
    if handle in ARCHITECTURES:
        return ARCHITECTURES[handle]
    for row in ARCHITECTURES.values():
        if handle in (f"hf://{row.timm_repository}", f"hf://{row.transformers_repository}"):
            return row
    return None
