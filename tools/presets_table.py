"""Writes the table of presets into README.md, from the catalog.

python tools/presets_table.py            # rewrites the table
python tools/presets_table.py --check    # fails if it is out of date
"""

import pathlib
import sys

from absl import app, flags

from keras_deit.models import DeiTImageClassifier

FLAGS = flags.FLAGS
flags.DEFINE_bool("check", False, "Change nothing; exit with 1 if the table is out of date.")

README = pathlib.Path(__file__).parent.parent / "README.md"
START, END = "<!-- presets -->\n", "<!-- end of presets -->\n"


def table():
    lines = ["| preset | parameters | image | top-1 |", "| --- | --- | --- | --- |"]
    for name, row in DeiTImageClassifier.presets.items():
        top1 = f"{row['top1']:.3f}".rstrip("0").rstrip(".") if "top1" in row else "see below"
        lines.append(f"| `{name}` | {row['parameters']:,} | {row['image_size']} | {top1} |")
    return "\n".join(lines) + "\n"


def main(_):
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    updated = before + START + "\n" + table() + "\n" + END + after
    if FLAGS.check:
        sys.exit(0 if updated == text else f"{README} has another table: run tools/presets_table.py")
    README.write_text(updated, encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
