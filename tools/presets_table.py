"""Writes the table of presets into README.md, from the catalog and from what tools/parity.py
measured.

python tools/presets_table.py            # rewrites the table
python tools/presets_table.py --check    # fails if it is out of date
"""

import json
import os
import pathlib
import sys

# Less of TensorFlow's log among what this prints
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

from keras_deit.models import DeiTImageClassifier

FLAGS = flags.FLAGS
flags.DEFINE_bool("check", False, "Change nothing; exit with 1 if the table is out of date.")

ROOT = pathlib.Path(__file__).parent.parent
README, PARITY = ROOT / "README.md", ROOT / "docs" / "parity.json"
START, END = "<!-- presets -->\n", "<!-- end of presets -->\n"


BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def table():
    parity = json.loads(PARITY.read_text(encoding="utf-8"))["architectures"]
    lines = [
        f"| preset | parameters | image | top-1 | {' | '.join(BACKENDS.values())} |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in DeiTImageClassifier.presets.items():
        top1 = f"{row['top1']:.3f}".rstrip("0").rstrip(".") if "top1" in row else "see below"
        measured = parity.get(name.removesuffix("_in21k"))
        if measured and measured["parameters"] != row["parameters"]:
            sys.exit(
                f"{name} has {measured['parameters']:,} parameters, and {row['parameters']:,} are "
                "published."
            )
        differences = [
            _largest(measured["differences"][backend]) if measured else "" for backend in BACKENDS
        ]
        lines.append(
            f"| `{name}` | {row['parameters']:,} | {row['image_size']} | {top1} | "
            f"{' | '.join(differences)} |"
        )
    return "\n".join(lines) + "\n"


def _largest(differences):
    return f"{max(value for outputs in differences.values() for value in outputs.values()):.1e}"


def main(_):
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    updated = before + START + "\n" + table() + "\n" + END + after
    if FLAGS.check:
        sys.exit(
            0 if updated == text else f"{README} has another table: run tools/presets_table.py"
        )
    README.write_text(updated, encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
