"""Writes a table per device, a chart, and all rows as CSV.

    python -m benchmarks.report --markdown benchmarks/README.md --chart docs/benchmarks.png --csv \\
        --input benchmarks/results/avx512_bf16.jsonl,benchmarks/results/amx.jsonl

The tables replace the section `results` of the Markdown page. The CSV files are written beside the
JSON lines.
"""

import csv
import io
import itertools
import os
import pathlib
import sys

from absl import app, flags

from benchmarks import results
from benchmarks.chart import draw
from benchmarks.headline import OURS, fastest, grouped, headlines, is_measured, speed
from tools.markdown_section import write_section

FLAGS = flags.FLAGS
flags.DEFINE_list("input", None, "Files of measurements from run.", required=True)
flags.DEFINE_string("markdown", None, "Markdown page for the tables. Default: print them.")
flags.DEFINE_string("chart", None, "PNG file for the chart. Default: not drawn.")
flags.DEFINE_bool("csv", False, "Write all rows as CSV beside each input.")

COLUMNS = (
    "preset",
    "image_size",
    "num_layers",
    "batch_size",
    "requested_batch_size",
    "mode",
    "precision",
    "package",
    "runtime",
    "backend",
    "jit",
    "status",
    "images_per_second",
    "to_fastest_peer",
    "step_ms_median",
    "step_ms_p10",
    "step_ms_p90",
    "step_ms_p99",
    "n",
    "throughput_step_ms",
    "steps_in_flight",
    "gflop_per_second",
    "of_ceiling",
    "mfu",
    "logits_relative_error",
    "peak_host_memory_mib",
    "peak_device_memory_mib",
    "build_seconds",
    "first_call_seconds",
    "timing",
    "device",
    "device_name",
    "load_average",
    "note",
    "date",
    "message",
)


def tables(rows, folder="."):
    """Markdown tables of all devices, with links relative to `folder`."""
    devices = grouped(rows, ("file", "machine", "device_name"))
    return "\n".join(_device(of_one, folder) for of_one in devices.values())


def _device(rows, folder):
    first = rows[0]
    lines = [f"### {first.get('device_name') or first['machine']}", ""]
    if first.get("device_name"):
        lines += [f"In a machine with {first['machine']}.", ""]
    lines += [*_circumstances(rows, folder), ""]
    exclusive = any(row["timing"] == "exclusive" for row in rows)
    names = ["preset", "batch", "mode", "precision", OURS, "images/s", "fastest peer", "images/s"]
    names += ["ratio", "in the same runtime", "exported, images/s"]
    names += ["p50 ms", "p99 ms", "MFU", "device MiB"] if exclusive else []
    lines += [f"| {' | '.join(names)} |", "| --- " * len(names) + "|"]
    own_size = [row for row in rows if row["image_size"] is None and row["num_layers"] is None]
    lines += [_line(found, exclusive) for found in headlines(own_size or rows)]
    return "\n".join([*lines, ""])


def _circumstances(rows, folder):
    dates = sorted({row["date"] for row in rows})
    versions = sorted(
        {f"{name} {version}" for row in rows for name, version in row["versions"].items()}
    )
    yield f"Measured on {', '.join(dates)} with {', '.join(versions)}."
    drivers = {row["gpu"]["driver_version"] for row in rows if row.get("gpu")}
    if drivers:
        yield f"Driver {', '.join(sorted(drivers))}."
    notes = sorted({row["note"] for row in rows if row.get("note")})
    loads = [row["load_average"] for row in rows if row.get("load_average") is not None]
    shared = "; ".join(notes) if notes else "not recorded"
    load = f" Load average at each start: {min(loads)} to {max(loads)}." if loads else ""
    yield f"What shared the machine: {shared}.{load}"
    if rows[0].get("file"):
        file = os.path.relpath(rows[0]["file"], folder)
        table = pathlib.Path(file).with_suffix(".csv").as_posix()
        yield f"All rows: [CSV]({table}), [JSON lines]({pathlib.Path(file).as_posix()})."


def _line(found, exclusive):
    ours, peer = found["ours"], found["peer"]
    cells = [results.model_name(ours), ours["batch_size"], ours["mode"], found["precision"]]
    cells += [_runtime(ours), f"{speed(ours):.1f}"]
    cells += [f"{peer['package']}, {_runtime(peer)}", f"{speed(peer):.1f}"] if peer else ["", ""]
    cells.append(f"**{found['ratio']:.2f}**" if peer else "")
    cells.append(", ".join(f"{name} {ratio:.2f}" for name, ratio in found["same_runtime"].items()))
    exported = found["exported"]
    cells.append(f"{exported['runtime']} {speed(exported):.1f}" if exported else "")
    if exclusive:
        cells += [f"{ours['step_ms_median']:.2f}", _number(ours["step_ms_p99"])]
        cells += [_number(ours["mfu"]), _number(ours["peak_device_memory_mib"])]
    return f"| {' | '.join(map(str, cells))} |"


def _runtime(row):
    return row["runtime"] + ("" if row["jit"] else ", not compiled")


def _number(value):
    """Four significant digits; more would be noise."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def table_of_all(rows):
    """All rows as CSV, by group, the fastest first."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for group in grouped(rows).values():
        for row in sorted(group, key=speed, reverse=True):
            row = row | _beside(row, group)
            writer.writerow([_number(row.get(name)) for name in COLUMNS])
    return stream.getvalue()


def _beside(row, group):
    """Compares a row with the fastest peer of its group and with the largest product alone."""
    if row["status"] != "measured":
        return {}
    alike = [other for other in group if other["precision"] == row["precision"]]
    peer = fastest(other for other in alike if other["package"] != OURS)
    products = [other for other in alike if other["package"] == "ceiling"]
    limit = max((other.get("gflop_per_second", 0) for other in products), default=0)
    return {
        "to_fastest_peer": speed(row) / speed(peer) if peer and row["package"] == OURS else None,
        "of_ceiling": row["gflop_per_second"] / limit if limit and is_measured(row) else None,
    }


def main(_):
    rows = []
    try:
        for file in FLAGS.input:
            found = results.read(file)
            if not found:
                sys.exit(
                    f"--input {file} has no rows. Measure some: python -m benchmarks.run "
                    f"--output {file}"
                )
            rows += [{**row, "file": file} for row in found]
    except ValueError as error:
        sys.exit(str(error))
    folder = pathlib.Path(FLAGS.markdown or ".").parent
    text = tables(rows, folder)
    if FLAGS.markdown is None:
        print(text)
    else:
        write_section(pathlib.Path(FLAGS.markdown), "results", text)
    if FLAGS.csv:
        for file, of_one in itertools.groupby(rows, lambda row: row["file"]):
            path = pathlib.Path(file).with_suffix(".csv")
            path.write_text(table_of_all(list(of_one)), encoding="utf-8")
    if FLAGS.chart is not None:
        draw(rows, FLAGS.chart)


if __name__ == "__main__":
    app.run(main)
