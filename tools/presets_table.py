"""Writes the tables of docs/presets.md, docs/parity.md and docs/load.md, from the catalog,
docs/parity.json and tools/converting/deit3_jax.csv.

python tools/presets_table.py            # rewrites the tables
python tools/presets_table.py --check    # fails if one is out of date
"""

import csv
import json
import os
import pathlib
import sys

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags
from markdown_section import with_section, write_section

from keras_deit.presets.catalog import ARCHITECTURES

FLAGS = flags.FLAGS
flags.DEFINE_bool("check", False, "Change nothing; exit with 1 if a table is out of date.")

DOCS = pathlib.Path(__file__).parent.parent / "docs"
# From the README of affjljoo3581/deit3-jax at 753d01b
DEIT3_JAX = pathlib.Path(__file__).parent / "converting" / "deit3_jax.csv"
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
FAMILIES = {
    "DeiT": ("deit", False, False),
    "DeiT, distilled": ("deit", True, False),
    "DeiT III": ("deit3", False, False),
    "DeiT III, pre-trained on ImageNet-21k": ("deit3", False, True),
}


def tables_of_presets():
    return "\n".join(f"### {title}\n\n{_family(*which)}" for title, which in FAMILIES.items())


def _family(version, distilled, in21k):
    rows = [
        row
        for row in ARCHITECTURES.values()
        if (row.version, row.distilled, row.in21k) == (version, distilled, in21k)
    ]
    columns = ["preset", "size", "image", "parameters", "top-1", "top-1, timm", "weights"]
    lines = [_row(columns), _row(["---"] * len(columns))]
    for row in rows:
        repositories = [row.timm_repository, row.transformers_repository]
        cells = [
            f"`{row.name}`",
            row.size,
            row.image_size,
            f"{row.parameters:,}",
            _percent(row.top1),
            _percent(row.timm_top1),
            ", ".join(_link(repository) for repository in repositories if repository),
        ]
        lines.append(_row(cells))
    return "\n".join(lines) + "\n"


def _row(cells):
    return f"| {' | '.join(map(str, cells))} |"


def _percent(accuracy):
    return f"{accuracy:.3f}".rstrip("0").rstrip(".")


def _link(repository):
    owner, _ = repository.split("/")
    return f"[{owner}](https://huggingface.co/{repository})"


def table_of_parity():
    """The largest difference of each architecture on each backend."""
    parity = json.loads((DOCS / "parity.json").read_text(encoding="utf-8"))["architectures"]
    lines = [_row(["preset", *BACKENDS.values()]), _row(["---"] * (1 + len(BACKENDS)))]
    for name, row in ARCHITECTURES.items():
        if row.in21k:  # the architecture of the row without it
            continue
        measured = parity[name]
        if measured["parameters"] != row.parameters:
            sys.exit(
                f"{name} has {measured['parameters']:,} parameters, and {row.parameters:,} are "
                "published."
            )
        largest = [_largest(measured["differences"][backend]) for backend in BACKENDS]
        lines.append(_row([f"`{name}`", *largest]))
    return "\n".join(lines) + "\n"


def table_of_families():
    """The largest difference of each family that loads, on each backend."""
    families = json.loads((DOCS / "parity.json").read_text(encoding="utf-8"))["families"]
    lines = [_row(["family", "model", *BACKENDS.values()]), _row(["---"] * (2 + len(BACKENDS)))]
    for measured in families.values():
        largest = [f"{max(measured[backend].values()):.1e}" for backend in BACKENDS]
        lines.append(_row([measured["title"], f"`{measured['model']}`", *largest]))
    return "\n".join(lines) + "\n"


def _largest(differences):
    return f"{max(value for outputs in differences.values() for value in outputs.values()):.1e}"


def table_of_deit3_jax():
    columns = ["recipe", "model", "trained on", "epochs", "image", "top-1", "original", "weights"]
    lines = [_row(columns), _row(["---"] * len(columns))]
    with open(DEIT3_JAX, encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            files = {"fine-tuned": row["checkpoint"], "pre-trained": row["pretrained"]}
            if not row["pretrained"]:
                files = {"trained": row["checkpoint"]}
            cells = [
                row["recipe"],
                row["model"],
                f"ImageNet-{row['pretraining_data']}",
                row["epochs"],
                row["image_sizes"].replace("-", ", then "),
                row["top1(%)"],
                row["original_top1(%)"],
                ", ".join(
                    f"[{kind}](https://huggingface.co/affjljoo3581/deit3-jax/resolve/main/"
                    f"{file}.msgpack)"
                    for kind, file in files.items()
                ),
            ]
            lines.append(_row(cells))
    return "\n".join(lines) + "\n"


TABLES = (
    ("presets.md", "presets", tables_of_presets),
    ("parity.md", "presets", table_of_parity),
    ("parity.md", "families", table_of_families),
    ("load.md", "deit3-jax", table_of_deit3_jax),
)


def main(_):
    for page, section, table in TABLES:
        content = (DOCS / page).read_text(encoding="utf-8")
        if not FLAGS.check:
            write_section(DOCS / page, section, table())
        elif with_section(content, section, table(), page) != content:
            sys.exit(f"The table in docs/{page} is out of date: run tools/presets_table.py")


if __name__ == "__main__":
    app.run(main)
