"""Writes the tables of docs/presets.md and docs/parity.md, from the catalog and docs/parity.json.

python tools/presets_table.py            # rewrites the tables
python tools/presets_table.py --check    # fails if one is out of date
"""

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


def _largest(differences):
    return f"{max(value for outputs in differences.values() for value in outputs.values()):.1e}"


def main(_):
    for page, table in (("presets.md", tables_of_presets), ("parity.md", table_of_parity)):
        content = (DOCS / page).read_text(encoding="utf-8")
        if not FLAGS.check:
            write_section(DOCS / page, "presets", table())
        elif with_section(content, "presets", table(), page) != content:
            sys.exit(f"The table in docs/{page} is out of date: run tools/presets_table.py")


if __name__ == "__main__":
    app.run(main)
