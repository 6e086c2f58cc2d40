"""Writes tests/golden: the outputs of timm's own code, for models small enough to store.

    pip install timm torchvision        # made with timm 1.0.31 and PyTorch 2.13.0
    python tools/golden.py

For DeiT, distilled DeiT and DeiT III: random weights, two images, and timm's outputs at three
depths, which are the embeddings, the second of three blocks, and the logits of each head and of the
model. Also positions, resampled by timm's `resample_abs_pos_embed`.
"""

import pathlib

import timm
import torch
from absl import app, flags
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "output",
    str(pathlib.Path(__file__).parent.parent / "tests" / "golden"),
    "Folder for the files.",
)

ARCHITECTURES = (
    "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
)
# Images and patches are not square and all sizes differ, so that a swapped axis shows.
ARGUMENTS = {
    "img_size": (12, 32),
    "patch_size": (4, 8),
    "embed_dim": 12,
    "depth": 3,
    "num_heads": 2,
    "num_classes": 5,
}
GRID, NEW_GRIDS = (14, 14), ((24, 16), (7, 7), (24, 24), (12, 20))


def forward(name):
    """{name: tensor} of the weights, the images and timm's outputs."""
    model = timm.create_model(name, pretrained=False, **ARGUMENTS).eval()
    for key, parameter in model.named_parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 and "weight" in key else 0.3
        torch.nn.init.normal_(
            parameter, mean=float("norm" in key and key.endswith("weight")), std=scale
        )
    images = torch.randn(2, 12, 32, 3)
    results = {}
    model.blocks[0].register_forward_pre_hook(
        lambda module, inputs: results.update(embeddings=inputs[0])
    )
    model.blocks[1].register_forward_hook(
        lambda module, inputs, output: results.update(block_1=output)
    )
    model.head.register_forward_hook(
        lambda module, inputs, output: results.update({"class": output})
    )
    if "distilled" in name:
        model.head_dist.register_forward_hook(
            lambda module, inputs, output: results.update(distillation=output)
        )
    results["logits"] = model(images.permute(0, 3, 1, 2))
    results |= {f"weights.{key}": tensor for key, tensor in model.state_dict().items()}
    return {"images": images, **results}


def resampled():
    """{name: tensor} of positions with 2 prefix tokens, and of the same on other grids."""
    positions = torch.randn(1, 2 + GRID[0] * GRID[1], 3)
    results = {
        f"{rows}x{columns}": resample_abs_pos_embed(positions, (rows, columns), GRID, 2)
        for rows, columns in NEW_GRIDS
    }
    return {"positions": positions, **results}


def main(_):
    torch.manual_seed(0)
    output = pathlib.Path(FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        files = {**{name: forward(name) for name in ARCHITECTURES}, "positions": resampled()}
    for name, tensors in files.items():
        contiguous = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
        save_file(
            contiguous,
            output / f"{name}.safetensors",
            metadata={"timm": timm.__version__, "torch": torch.__version__},
        )


if __name__ == "__main__":
    app.run(main)
