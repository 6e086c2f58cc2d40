"""Converts DeiT checkpoints from PyTorch and Flax, and to PyTorch. The round trip is bit-exact.

From a checkpoint of facebookresearch/deit, timm or transformers (.safetensors, or .pth if torch is
installed) to a preset directory:

    python tools/convert_checkpoint.py --checkpoint deit_tiny_patch16_224-a1311bcf.pth \\
        --preset deit_tiny_patch16_224 --output my_deit

From a checkpoint of affjljoo3581/deit3-jax; needs `pip install msgpack`:

    python tools/convert_checkpoint.py \\
        --checkpoint deit3-s16-224-in1k-400ep-best.msgpack --output my_deit3

From a preset to a file that timm loads with `strict=True`:

    python tools/convert_checkpoint.py --preset my_deit --to timm --output my_deit.safetensors

Download and convert every published model:

    python tools/convert_checkpoint.py --all --output presets
"""

import argparse
import hashlib
import os
import pathlib
import re
import sys

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import safetensors.numpy
from absl import app, flags
from converting import deit3_jax, flax_file
from flag_errors import of_flag

from keras_deit import presets
from keras_deit.atomic import atomic_file
from keras_deit.models import DeiTBackbone, DeiTImageClassifier

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "File to convert. Default: the weights of --preset.")
flags.DEFINE_string(
    "preset",
    None,
    "Name, hf:// address or directory of the preset, which gives the architecture. Not with a "
    ".msgpack file, whose shapes give it.",
)
flags.DEFINE_string(
    "output",
    None,
    "Directory to write; with --to timm, a file; with --all, a folder for all of them.",
    required=True,
)
flags.DEFINE_enum("to", "keras_deit", ["keras_deit", "timm"], "Format to write.")
flags.DEFINE_bool(
    "all",
    False,
    "Download and convert every published model, replacing those that --output contains.",
)
flags.DEFINE_bool("overwrite", False, "Replace --output if it exists.")

PICKLES = (".pth", ".pt", ".bin")
FLAX = ".msgpack"


def read_checkpoint(path):
    """{tensor name: array} of a .safetensors file or a pickle of tensors."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError("The file does not exist.")
    if path.suffix == ".safetensors":
        return presets.read_tensors(path)
    if path.suffix not in PICKLES:
        raise ValueError(
            f"Expected a file ending in .safetensors, {', '.join(PICKLES)} or {FLAX}. "
            f"Received: {path}"
        )
    try:
        import torch
    except ImportError as error:
        raise ValueError("Reading it needs PyTorch: `pip install torch`.") from error
    if torch.__version__ < (2, 10):
        # CVE-2026-24747: before, a pickle could run code in spite of `weights_only=True`.
        raise ValueError(
            "Reading a pickle safely needs PyTorch 2.10 or newer: `pip install -U torch`. "
            f"Received: PyTorch {torch.__version__}"
        )
    try:
        # facebookresearch/deit saves its command-line arguments beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle fails in many ways
        raise ValueError(
            "The file is damaged, or contains more than tensors, which could run code and is not "
            "loaded. Copy it again, or save only `model.state_dict()` in PyTorch. "
            f"{type(error).__name__}: {error}"
        ) from error
    tensors = content
    for name in ("model", "state_dict"):  # facebookresearch's name, and timm's
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            tensors = content[name]
    if not isinstance(tensors, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in tensors.values()
    ):
        raise ValueError(
            "The file must contain a state dict, or one under 'model' or 'state_dict'. Received: "
            f"{type(content).__name__}"
        )
    return {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}


def check_hash(path):
    """The preset whose published file this is, or `None`.

    facebookresearch's file names end in the first digits of their SHA-256.
    """
    name, _, promised = pathlib.Path(path).stem.rpartition("-")
    if name not in DeiTImageClassifier.presets or not re.fullmatch("[0-9a-f]{8}", promised):
        return None
    with open(path, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(promised):
        raise ValueError(
            f"The file is truncated or changed: by its name, its SHA-256 starts with {promised}, "
            f"but it is {found}. Download it again."
        )
    return name


def load_model(preset, checkpoint):
    if checkpoint is None:
        with of_flag("preset", preset):
            cls = (
                DeiTImageClassifier
                if presets.find_preset(preset, load_weights=False).has_head
                else DeiTBackbone
            )
            return cls.from_preset(preset)
    if is_flax(checkpoint):
        with of_flag("checkpoint", checkpoint):
            return deit3_jax.build(flax_file.read_arrays(pathlib.Path(checkpoint)), checkpoint)
    with of_flag("checkpoint", checkpoint):
        origin = check_hash(checkpoint) if os.path.isfile(checkpoint) else None
        tensors = read_checkpoint(checkpoint)
    try:
        model = empty_model(preset, tensors)
        presets.assign_tensors(model, tensors, source=checkpoint, origin=origin)
    except ValueError as error:
        fitting = [name for name in as_large_as(tensors) if name != preset]
        hint = (
            f" By its number of weights it is {' or '.join(fitting)}: use that as --preset."
            if fitting
            else ""
        )
        raise ValueError(
            f"--checkpoint {checkpoint} does not fit --preset {preset}.{hint} {error}"
        ) from error
    return model


def is_flax(checkpoint):
    return pathlib.Path(checkpoint).suffix == FLAX


def empty_model(preset, tensors):
    """The preset's architecture, with the heads of the checkpoint."""
    # The head of the class token in the three PyTorch layouts.
    heads = [
        tensors[name]
        for name in ("head.weight", "classifier.weight", "cls_classifier.weight")
        if name in tensors
    ]
    if not heads:
        return DeiTBackbone.from_preset(preset, load_weights=False)
    return DeiTImageClassifier.from_preset(
        preset,
        load_weights=False,
        num_classes=len(heads[0]),
        use_distillation_head="head_dist.weight" in tensors
        or "distillation_classifier.weight" in tensors,
    )


def as_large_as(tensors):
    """Names of the published models with the same number of weights."""
    count = sum(tensor.size for tensor in tensors.values())
    return [name for name, row in DeiTImageClassifier.presets.items() if row["parameters"] == count]


def convert(preset, output, to="keras_deit", checkpoint=None):
    model = load_model(preset, checkpoint)
    if to == "timm":
        with atomic_file(output) as file:
            metadata = {"format": "pt"}
            safetensors.numpy.save_file(presets.timm_tensors(model), file, metadata=metadata)
    else:
        model.save_to_preset(output)


def convert_all(output, to):
    """Converts every published model and returns {name: error} of those that failed."""
    # The digits model, which ships inside the package, has no published accuracy.
    names = [name for name, row in DeiTImageClassifier.presets.items() if "top1" in row]
    progress = keras.utils.Progbar(len(names), unit_name="preset")
    failures = {}
    for index, name in enumerate(names, start=1):
        path = pathlib.Path(output) / (name if to == "keras_deit" else f"{name}.safetensors")
        try:
            convert(name, path, to)
        except Exception as error:  # reported below, after the others are converted
            failures[name] = error
        keras.backend.clear_session(free_memory=True)
        progress.update(index)
    print(f"\nConverted {len(names) - len(failures)} of {len(names)} to {output}.")
    for name, error in failures.items():
        print(f"Failed: {name}: {type(error).__name__}: {error}")
    return failures


def main(_):
    is_alone = bool(FLAGS.checkpoint) and is_flax(FLAGS.checkpoint)
    if FLAGS.all + bool(FLAGS.preset) + is_alone != 1 or (FLAGS.all and FLAGS.checkpoint):
        raise app.UsageError(
            "Use --preset NAME, with or without --checkpoint FILE; or --checkpoint FILE.msgpack "
            "alone; or --all alone."
        )
    output, checkpoint = (
        path and os.path.expanduser(path) for path in (FLAGS.output, FLAGS.checkpoint)
    )
    if FLAGS.all:
        sys.exit(1 if convert_all(output, FLAGS.to) else 0)
    try:
        if os.path.exists(output) and not FLAGS.overwrite:
            raise ValueError(
                f"--output {output} exists. Choose another path, or replace it with --overwrite."
            )
        convert(FLAGS.preset, output, FLAGS.to, checkpoint)
    except (ValueError, OSError) as error:
        sys.exit(f"Not converted. {error}")
    print(f"Wrote {output}")


if __name__ == "__main__":
    app.run(main)
