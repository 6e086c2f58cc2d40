"""Converts DeiT checkpoints between PyTorch and keras_deit. There and back is bit-exact.

A file in the layout of facebookresearch/deit, timm or transformers (.safetensors, or .pth with
torch installed) to a preset directory:

    python tools/convert_checkpoint.py --checkpoint deit_tiny_patch16_224-a1311bcf.pth --preset
    deit_tiny_patch16_224 --output my_deit

A preset, by any handle of `from_preset`, to a file that timm loads with `strict=True`:

    python tools/convert_checkpoint.py --preset my_deit --to timm --output my_deit.safetensors

Every published model, downloaded, to directories in a folder:

    python tools/convert_checkpoint.py --all --output presets
"""

import argparse
import hashlib
import os
import pathlib
import re
import sys
import tempfile

# Less of TensorFlow's log among what this prints
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import safetensors.numpy
from absl import app, flags

from keras_deit import presets
from keras_deit.models import DeiTBackbone, DeiTImageClassifier

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "File to convert. Without it, the weights of --preset.")
flags.DEFINE_string("preset", None, "Name of the architecture, or handle of a preset.")
flags.DEFINE_string(
    "output",
    None,
    "Directory to write; with --to timm a file; with --all a folder of either.",
    required=True,
)
flags.DEFINE_enum("to", "keras_deit", ["keras_deit", "timm"], "Layout to write.")
flags.DEFINE_bool(
    "all",
    False,
    "Convert every published model of the catalog; replaces what --output has of them.",
)
flags.DEFINE_bool("overwrite", False, "Replace --output if it is there.")

PICKLES = (".pth", ".pt", ".bin")


def read_checkpoint(path):
    """{tensor name: array} of a .safetensors file, or of a pickle of tensors."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    if path.suffix == ".safetensors":
        return presets.read_tensors(path)
    if path.suffix not in PICKLES:
        raise ValueError(
            f"A checkpoint is a .safetensors, {', '.join(PICKLES)} file. Received: {path}"
        )
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"Reading {path} takes PyTorch: pip install torch.") from error
    try:
        # facebookresearch's training keeps its arguments beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle fails in many ways
        raise ValueError(
            f"{path} is not whole, or holds more than tensors and is not opened, as such a file "
            "can run code. Copy it again, or save "
            f"`model.state_dict()` alone in the program that wrote it. {type(error).__name__}: "
            f"{error}"
        ) from error
    tensors = content
    for name in ("model", "state_dict"):  # facebookresearch's name, and timm's
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            tensors = content[name]
    if not isinstance(tensors, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in tensors.values()
    ):
        raise ValueError(
            f"{path} must hold a state dict, or one under 'model' or 'state_dict'. Received: "
            f"{type(content).__name__}"
        )
    return {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}


def check_hash(path):
    """The preset whose published file this is, or `None`: facebookresearch's names end in the first
    digits of their SHA-256.
    """
    name, _, promised = pathlib.Path(path).stem.rpartition("-")
    if name not in DeiTImageClassifier.presets or not re.fullmatch("[0-9a-f]{8}", promised):
        return None
    with open(path, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(promised):
        raise ValueError(
            f"{path} was cut short or changed: its name promises a SHA-256 that starts with "
            f"{promised}, and it is {found}. "
            "Download it again."
        )
    return name


def load_model(preset, checkpoint):
    if checkpoint is None:
        cls = DeiTImageClassifier if presets.find_preset(preset).has_head else DeiTBackbone
        return cls.from_preset(preset)
    origin = check_hash(checkpoint) if os.path.isfile(checkpoint) else None
    tensors = read_checkpoint(checkpoint)
    try:
        model = empty_model(preset, tensors)
        presets.assign_tensors(model, tensors, source=checkpoint, origin=origin)
    except ValueError as error:
        fitting = [name for name in as_large_as(tensors) if name != preset]
        hint = (
            f" By its number of weights it is {' or '.join(fitting)}: give that as --preset."
            if fitting
            else ""
        )
        raise ValueError(f"{checkpoint} does not fit --preset {preset}.{hint} {error}") from error
    return model


def empty_model(preset, tensors):
    """The preset's architecture with the heads that the tensors have."""
    # Of the class token, in the three layouts.
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
    """Names of the published models that have as many weights as these tensors."""
    count = sum(tensor.size for tensor in tensors.values())
    return [name for name, row in DeiTImageClassifier.presets.items() if row["parameters"] == count]


def convert(preset, output, to="keras_deit", checkpoint=None):
    model = load_model(preset, checkpoint)
    if to == "timm":
        write_safetensors(pathlib.Path(output), presets.timm_tensors(model))
    else:
        model.save_to_preset(output)


def write_safetensors(path, tensors):
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, work = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        safetensors.numpy.save_file(tensors, work, metadata={"format": "pt"})
        os.chmod(work, 0o644)  # temporary files are for their owner alone
        os.replace(work, path)
    finally:
        pathlib.Path(work).unlink(missing_ok=True)


def convert_all(output, to):
    """Converts the whole catalog, goes on after a failure, and returns {name: error} of those that
    failed.
    """
    names = [
        name for name, row in DeiTImageClassifier.presets.items() if "top1" in row
    ]  # but for the digits, which ship inside
    progress = keras.utils.Progbar(len(names), unit_name="preset")
    failures = {}
    for index, name in enumerate(names, start=1):
        path = pathlib.Path(output) / (name if to == "keras_deit" else f"{name}.safetensors")
        try:
            convert(name, path, to)
        # Whatever it is, the others are converted and the report names it
        except Exception as error:
            failures[name] = error
        keras.backend.clear_session(free_memory=True)
        progress.update(index)
    print(f"\nConverted {len(names) - len(failures)} of {len(names)} to {output}.")
    for name, error in failures.items():
        print(f"Failed: {name}: {type(error).__name__}: {error}")
    return failures


def main(_):
    if FLAGS.all == bool(FLAGS.preset) or (FLAGS.all and FLAGS.checkpoint):
        raise app.UsageError(
            "Give --preset NAME, with or without --checkpoint FILE, or --all alone."
        )
    output, checkpoint = (
        path and os.path.expanduser(path) for path in (FLAGS.output, FLAGS.checkpoint)
    )
    if FLAGS.all:
        sys.exit(1 if convert_all(output, FLAGS.to) else 0)
    try:
        if os.path.exists(output) and not FLAGS.overwrite:
            raise ValueError(
                f"{output} is there already. Give another --output, or --overwrite to replace it."
            )
        convert(FLAGS.preset, output, FLAGS.to, checkpoint)
    except (ValueError, OSError) as error:
        sys.exit(f"Not converted. {error}")
    print(f"Wrote {output}")


if __name__ == "__main__":
    app.run(main)
