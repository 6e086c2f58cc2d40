"""Tables and a chart from a file of measurements.

    python -m benchmarks.report --input benchmarks/results/amx.jsonl --markdown benchmarks/README.md --chart docs/benchmarks.png

The tables take the place between the two marks of the Markdown file. For each subject the better of compiled and not is shown.
"""

import collections
import pathlib
import sys
import textwrap

from absl import app, flags

from benchmarks import results

FLAGS = flags.FLAGS
flags.DEFINE_string("input", None, "File of measurements.", required=True)
flags.DEFINE_string("markdown", None, "File to write the tables into; printed by default.")
flags.DEFINE_string("chart", None, "PNG to draw; none by default.")

START, END = "<!-- results -->\n", "<!-- end of results -->\n"
GROUP = ("machine", "device", "mode", "preset", "image_size", "num_layers", "requested_batch_size")
OURS = ("keras_deit", "openvino", "onnxruntime")  # the runtimes run this package's export


def grouped(rows, names=GROUP):
    """{values of these names: the rows that have them}, in the order of the file; by default, what was measured in turns."""
    groups = collections.defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return groups


def best(rows):
    """The fastest row of each subject, backend and dtype; one that was not measured only if none was."""
    chosen = {}
    for row in rows:
        key = (row["subject"], row["backend"], row["dtype"])
        if row["subject"] != "ceiling" and (key not in chosen or _speed(row) > _speed(chosen[key])):
            chosen[key] = row
    return list(chosen.values())


def ceiling(rows, dtype):
    """GFLOP/s of the fastest matrix product of this dtype beside these rows, or `None`."""
    products = [row for row in rows if row["subject"] == "ceiling" and row["dtype"] == dtype and _measured(row)]
    return max((row["gflop_per_second"] for row in products), default=None)


def _fastest(rows, dtype, ours):
    """The fastest row of this dtype, of this package or of its peers, or `None`."""
    found = [
        row
        for row in rows
        if row["subject"] != "ceiling" and (row["subject"] in OURS) == ours and row["dtype"] == dtype and _measured(row)
    ]
    return max(found, key=_speed, default=None)


def summary(rows):
    """Of each group and dtype this package's fastest way, beside the fastest peer."""
    lines = [
        "| preset | batch | mode | dtype | fastest way | images/s | of ceiling | fastest peer | images/s | to it | to the fastest in float32 |",
        "| --- " * 11 + "|",
    ]
    for group in grouped(rows).values():
        for dtype in dict.fromkeys(row["dtype"] for row in group):
            ours, peer, plain = _fastest(group, dtype, True), _fastest(group, dtype, False), _fastest(group, "float32", False)
            if ours is None or (peer or plain) is None:
                continue
            to_peer, to_plain = (f"{_speed(ours) / _speed(other):.2f}" if other else "" for other in (peer, plain))
            beside = f"{_way(peer)} | {_speed(peer):.1f}" if peer else "|"
            lines.append(
                f"| {results.model_name(ours)} | {ours['batch_size']} | {ours['mode']} | {dtype} | {_way(ours)} | {_speed(ours):.1f} "
                f"| {_of_ceiling(ours, group)} | {beside} | {to_peer} | {to_plain} |"
            )
    return lines


def _way(row):
    return f"{row['subject']} ({row['backend']}{'' if row['jit'] else ', not compiled'})"


def _of_ceiling(row, group):
    limit = ceiling(group, row["dtype"])
    return f"{row['gflop_per_second'] / limit:.2f}" if limit else ""


def tables(rows):
    lines = []
    for (machine,), of_machine in grouped(rows, ("machine",)).items():
        dates = sorted({row["date"] for row in of_machine})
        versions = sorted({f"{name} {version}" for row in of_machine for name, version in row["versions"].items()})
        lines += [f"{machine}; {', '.join(dates)}.", "", f"Versions: {', '.join(versions)}.", ""]
        lines += ["### Beside the fastest peer", "", *summary(of_machine), ""]
        for (mode, device), section in grouped(of_machine, ("mode", "device")).items():
            lines += [
                f"### {mode}, {device}",
                "",
                "| preset | batch | dtype | subject | backend | compiled | images/s | step ms (p10 to p90, n) | of ceiling | to best peer "
                "| to best in float32 | logits off by | peak MiB | build s | first call s |",
                "| --- " * 15 + "|",
            ]
            for group in grouped(section).values():
                lines += [_line(row, group) for row in sorted(best(group), key=_speed, reverse=True)]
            lines.append("")
    return "\n".join(lines)


def _line(row, group):
    start = f"| {results.model_name(row)} | {row['batch_size']} | {row['dtype']} | {row['subject']} | {row['backend']} |"
    if not _measured(row):
        why = textwrap.shorten(row.get("message", ""), 120, placeholder=" ...").replace("|", "/")
        return f"{start} | {row['status']}: {why} | | | | | | | | |"
    of_ceiling = _of_ceiling(row, group)
    peers = [_fastest(group, dtype, ours=False) if row["subject"] in OURS else None for dtype in (row["dtype"], "float32")]
    to_peer, to_float32 = (f"{_speed(row) / _speed(peer):.2f}" if peer else "" for peer in peers)
    steps = f"{row['step_ms_median']:.1f} ({row['step_ms_p10']:.1f} to {row['step_ms_p90']:.1f}, {row['n']})"
    memory = max(filter(None, (row["peak_device_memory_mib"], row["peak_host_memory_mib"])), default=0)
    jit, error = "yes" if row["jit"] else "no", row["logits_relative_error"]
    off = "" if error is None else f"{error:.1e}"
    seconds = f"{row['build_seconds']:.1f} | {row['first_call_seconds']:.1f}"
    return f"{start} {jit} | {row['images_per_second']:.1f} | {steps} | {of_ceiling} | {to_peer} | {to_float32} | {off} | {memory:.0f} | {seconds} |"


def _measured(row):
    return row["status"] == "measured"


def _speed(row):
    return row["images_per_second"] if _measured(row) else 0.0


def draw(rows, path):
    """Images per second of each subject, a panel for each group that has one of ours and a peer; for each group, if none has."""
    from matplotlib.figure import Figure  # without pyplot: no display is needed

    groups = [list(filter(_measured, best(group))) for group in grouped(rows).values()]
    groups = [group for group in groups if group]
    panels = [group for group in groups if len({row["subject"] in OURS for row in group}) == 2] or groups
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    height = 1.2 + 0.2 * max(map(len, panels))  # inches
    figure = Figure(figsize=(5 * columns, height * lines), layout="constrained")
    for place, group in enumerate(panels, start=1):
        axes = figure.add_subplot(lines, columns, place)
        bars = sorted(group, key=_speed)
        names = [f"{row['subject']} ({row['backend']}, {row['dtype']})" for row in bars]
        colors = ["tab:orange" if row["subject"] in OURS else "tab:gray" for row in bars]
        axes.barh(names, [_speed(row) for row in bars], color=colors)
        first = group[0]
        axes.set_title(f"{results.model_name(first)}\n{first['mode']}, batch {first['requested_batch_size']}", fontsize=9)
        axes.set_xlabel("images/s", fontsize=8)
        axes.tick_params(labelsize=8)
    figure.savefig(path, dpi=110)


def main(_):
    try:
        rows = results.read(FLAGS.input)
    except ValueError as error:
        sys.exit(str(error))
    if not rows:
        sys.exit(f"{FLAGS.input} has no measurements: python -m benchmarks.run --output {FLAGS.input}")
    text = tables(rows)
    if FLAGS.markdown is None:
        print(text)
    else:
        path = pathlib.Path(FLAGS.markdown)
        before, rest = path.read_text(encoding="utf-8").split(START)
        path.write_text(before + START + "\n" + text + "\n" + END + rest.split(END)[1], encoding="utf-8")
    if FLAGS.chart is not None:
        draw(rows, FLAGS.chart)


if __name__ == "__main__":
    app.run(main)
