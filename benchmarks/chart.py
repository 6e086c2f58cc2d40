"""Draws one chart: each package in its fastest runtime, one panel per device."""

import re

from benchmarks import results
from benchmarks.headline import OURS, grouped, is_measured, packages, speed

# The chart shows this case if it was measured, otherwise the case that most devices have.
PRESET, BATCH_SIZE, MODE = "deit_small_distilled_patch16_224", 8, "inference"
CASE = ("preset", "image_size", "num_layers", "requested_batch_size", "mode")
PRECISIONS = ("float32 (highest)", "tf32", "bfloat16", "int8")
# Packages that have every model in every runtime
COLORS = {OURS: "#d65f00", "timm": "#5b7083", "keras_hub": "#9fb1c1"}
RUNTIMES = {
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "torch": "PyTorch",
    "jax": "JAX",
    "tensorflow": "TensorFlow",
}


def draw(rows, path):
    from matplotlib.figure import Figure  # not pyplot, which needs a display

    rows = _of_one_case([row for row in rows if is_measured(row) and row["package"] in COLORS])
    devices = grouped(rows, ("machine", "device_name"))
    bars = {device: _bars(of_one) for device, of_one in devices.items()}
    # Each precision has its own line.
    tallest = max((len(some) + len({bar[0] for bar in some}) for some in bars.values()), default=1)
    height = 1.2 + 0.32 * tallest  # inches
    figure = Figure(figsize=(4.6 * max(1, len(bars)), height), layout="constrained")
    for place, ((machine, device_name), listed) in enumerate(bars.items(), start=1):
        axes = figure.add_subplot(1, len(bars), place)
        _panel(axes, listed)
        axes.set_ylim(tallest, -0.8)  # from top to bottom
        axes.set_title(_short(device_name or machine), fontsize=11, fontweight="bold", loc="left")
    if rows:
        first = rows[0]
        case = (
            f"{results.model_name(first)}, {first['mode']}, batch {first['requested_batch_size']}"
        )
        what = "images/s, each package in its fastest runtime (to the fastest peer)"
        figure.suptitle(f"{case}\n{what}", fontsize=11)
    figure.savefig(path, dpi=110)


def _of_one_case(rows):
    cases = grouped(rows, CASE)
    wanted = (PRESET, None, None, BATCH_SIZE, MODE)
    if wanted in cases or not cases:
        return cases.get(wanted, [])
    return max(cases.values(), key=len)


def _bars(rows):
    """[(precision, row, ratio or None)] from top to bottom."""
    by_precision = {name: packages(some) for (name,), some in grouped(rows, ("precision",)).items()}
    order = sorted(by_precision, key=lambda name: (*PRECISIONS, name).index(name))
    listed = []
    for precision in order:
        best = sorted(by_precision[precision].values(), key=speed, reverse=True)
        peers = [speed(row) for row in best if row["package"] != OURS]
        for row in best:
            ratio = speed(row) / max(peers) if peers and row["package"] == OURS else None
            listed.append((precision, row, ratio))
    return listed


def _panel(axes, listed):
    longest = max(speed(row) for _, row, _ in listed)
    place, places, last = 0.0, [], None
    for precision, row, ratio in listed:
        if precision != last:
            axes.text(longest / 60, place, precision, va="center", fontsize=10, fontweight="bold")
            place, last = place + 0.9, precision
        axes.barh(place, speed(row), 0.8, color=COLORS[row["package"]])
        beside = f"{speed(row):.0f}" if speed(row) >= 100 else f"{speed(row):.1f}"
        beside += f" ({ratio:.2f}×)" if ratio else ""  # noqa: RUF001
        weight = "bold" if row["package"] == OURS else "normal"
        axes.text(
            speed(row) + longest / 60, place, beside, va="center", fontsize=9, fontweight=weight
        )
        places.append(place)
        place += 1.0
    labels = [f"{row['package']} in {RUNTIMES[row['runtime']]}" for _, row, _ in listed]
    axes.set_yticks(places, labels, fontsize=9)
    axes.set_xlim(0, longest * 1.3)
    axes.set_xticks([])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(left=False)


def _short(machine):
    """Short name of a CPU, with its best instructions for half precision."""
    name, *rest = machine.split(", ")
    name = re.sub(r"\(R\)| Processor| @ .*", "", name)
    instructions = [word for word in rest if not word.endswith("cores")]
    return f"{name} ({instructions[-1]})" if instructions else name
