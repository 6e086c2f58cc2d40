"""Writes tables of compile_for's rows: the compilers' estimates, not measured times.

    python -m benchmarks.compile_report --markdown docs/compile_for.md \\
        --input benchmarks/compiled/one_device.jsonl

The tables replace the section `compiled` of the Markdown page. There is one table for single TPU
chips, one for a GPU and one for meshes of chips, as far as there are rows.
"""

import csv
import pathlib
import sys
import textwrap

from absl import app, flags

from benchmarks import compile_programs, results, topologies
from tools.markdown_section import write_section

FLAGS = flags.FLAGS

SUBJECTS = ("keras_deit", "keras_hub", "jax")
WARNING = "These are the compiler's estimates, not measured times."
# What the rows of one table line have in common
GROUP = tuple(name for name in compile_programs.KEY if name != "subject")


def tables(rows):
    lines = []
    for topology in dict.fromkeys(row["topology"] for row in rows):
        chosen = [row for row in rows if row["topology"] == topology and not row["mesh"]]
        if chosen:
            on_tpu = topologies.parse(topology).chip.platform == "tpu"
            lines += [f"### {topology}", "", f"{WARNING} {_versions(chosen)}", ""]
            lines += [*(tpu_table(chosen) if on_tpu else gpu_table(chosen)), ""]
    meshes = [row for row in rows if row["mesh"]]
    if meshes:
        lines += ["### Meshes", "", f"{WARNING} {_versions(meshes)}", "", *mesh_table(meshes), ""]
    return "\n".join(lines)


def tpu_table(rows):
    lines = _head(
        "model",
        "mode",
        "dtype",
        "batch",
        "M cycles: keras_deit",
        "KerasHub",
        "plain JAX (form)",
        "KerasHub to keras_deit",
        "keras_deit to plain JAX",
        "GB accessed",
        "temporary MiB",
        "of keras_deit's cycles: copies, matrix products",
    )
    for group in _groups(rows):
        ours, hub, plain = (group.get(subject) for subject in SUBJECTS)
        cells = [_cycles(row) for row in (ours, hub, plain)]
        if plain is not None and plain["status"] == "compiled":
            cells[2] += f" ({plain['form']})"
        lines.append(
            _line(
                *_what(next(iter(group.values()))),
                *cells,
                _ratio(hub, ours),
                _ratio(ours, plain),
                _each(group, lambda row: f"{row['bytes_accessed'] / 1e9:.1f}"),
                _each(group, lambda row: f"{row['temporary_bytes'] / 2**20:.0f}"),
                _shares(ours),
            )
        )
    return lines


def gpu_table(rows):
    lines = _head(
        "model",
        "mode",
        "dtype",
        "batch",
        "subject",
        "kernels",
        "library calls",
        "copies alone (MiB)",
        "temporary MiB",
    )
    for group in _groups(rows):
        for row in group.values():
            what = (*_what(row), row["subject"] + (f" ({row['form']})" if row.get("form") else ""))
            if row["status"] != "compiled":
                lines.append(_line(*what, _why(row), "", "", ""))
                continue
            calls = {
                name.removeprefix("custom-call "): n
                for name, n in row["operations"].items()
                if "custom-call" in name
            }
            kernels = sum(row["operations"].values()) - sum(calls.values())
            copies = row["copies"]
            lines.append(
                _line(
                    *what,
                    kernels,
                    ", ".join(f"{count} `{name}`" for name, count in calls.items()),
                    f"{copies['count']} ({copies['bytes'] / 2**20:.0f})",
                    f"{row['temporary_bytes'] / 2**20:.0f}",
                )
            )
    return lines


def mesh_table(rows):
    lines = _head(
        "model",
        "topology",
        "chips",
        "mesh",
        "subject",
        "batch",
        "GiB of a chip",
        "fits",
        "collectives of a step",
        "MiB of collectives, a chip",
        "tensors of the whole batch",
        "rematerialized by the partitioner",
    )
    chips_of = {row["topology"]: topologies.parse(row["topology"]).num_chips for row in rows}
    order = list(dict.fromkeys(row["preset"] for row in rows))
    for row in sorted(
        rows, key=lambda row: (order.index(row["preset"]), chips_of[row["topology"]], row["mesh"])
    ):
        start = (
            results.model_name(row),
            row["topology"],
            chips_of[row["topology"]],
            row["mesh"],
            row["subject"],
            row["batch_size"],
        )
        lines.append(_line(*start, *_mesh_cells(row)))
    return lines


def _mesh_cells(row):
    if row["status"] != "compiled":
        fits = "no" if row["status"] == "does not fit" else ""
        return "", fits, _why(row), "", "", ""
    kinds = sorted(row["collectives"].items())
    limit = topologies.parse(row["topology"]).chip.memory_gib
    return (
        f"{row['held_bytes'] / 2**30:.1f} of {limit}",
        "yes" if row["fits"] else "no",
        ", ".join(f"{kind['count']} {name}" for name, kind in kinds) or "none",
        f"{row['collective_bytes'] / 2**20:.0f}",
        row["whole_batch_arrays"],
        row["rematerializations"],
    )


def _groups(rows):
    """`[{subject: row}]` of what differs in the subject alone."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in GROUP), {})[row["subject"]] = row
    return list(groups.values())


def _what(row):
    merged = f", {row['num_merged_tokens']} merged" if row["num_merged_tokens"] else ""
    variant = f", {row['variant']}" if row["variant"] else ""
    return (
        f"{results.model_name(row)}{merged}{', remat' * row['remat']}{variant}",
        row["mode"],
        row["dtype"],
        row["batch_size"],
    )


def _cycles(row):
    if row is None:
        return ""
    return f"{row['cycles'] / 1e6:.2f}" if row["status"] == "compiled" else _why(row)


def _why(row):
    return f"{row['status']}: {textwrap.shorten(row['message'], 200, placeholder=' ...')}".replace(
        "|", "/"
    )


def _ratio(one, other):
    if any(row is None or row["status"] != "compiled" for row in (one, other)):
        return ""
    return f"{one['cycles'] / other['cycles']:.2f}"


def _each(group, text):
    return ", ".join(
        text(group[name])
        for name in SUBJECTS
        if name in group and group[name]["status"] == "compiled"
    )


def _shares(row):
    if row is None or row["status"] != "compiled":
        return ""
    return ", ".join(
        f"{part / row['cycles']:.0%}" for part in (row["copies"]["cycles"], row["product_cycles"])
    )


def _versions(rows):
    found = sorted(
        {f"{name} {version}" for row in rows for name, version in row.get("versions", {}).items()}
    )
    return f"Versions: {', '.join(found)}."


def _head(*names):
    return [_line(*names), "| --- " * len(names) + "|"]


def _line(*cells):
    return f"| {' | '.join(map(str, cells))} |"


def write_csv(rows, path):
    """The figures that are single numbers or words."""
    flat = []
    for row in rows:
        copies = {f"copies_{name}": value for name, value in row.get("copies", {}).items()}
        flat.append(
            {
                name: value
                for name, value in {**row, **copies}.items()
                if not isinstance(value, (dict, list))
            }
        )
    names = list(dict.fromkeys(name for row in flat for name in row))
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(flat)


def main(_):
    try:
        rows = compile_programs.read(FLAGS.input)
    except ValueError as error:
        sys.exit(str(error))
    if not rows:
        sys.exit(
            f"--input {FLAGS.input} has no rows. Measure some: python -m benchmarks.compile_for "
            f"--output {FLAGS.input}"
        )
    text = tables(rows)
    if FLAGS.markdown is None:
        print(text)
    else:
        write_section(pathlib.Path(FLAGS.markdown), "compiled", text)
    if FLAGS.csv is not None:
        write_csv(rows, FLAGS.csv)


if __name__ == "__main__":
    flags.DEFINE_string("input", None, "File of rows from compile_for.", required=True)
    flags.DEFINE_string("markdown", None, "Markdown page for the tables. Default: print them.")
    flags.DEFINE_string("csv", None, "CSV file for all rows. Default: not written.")
    app.run(main)
