"""One chart to read at a glance: each package in its fastest runtime, a panel a device."""

import collections

from benchmarks import results
from benchmarks.headline import OURS, grouped, is_measured, packages, speed

# What the chart shows where it was measured; otherwise what most devices have.
PRESET, BATCH_SIZE, MODE = "deit_small_distilled_patch16_224", 8, "inference"
CASE = ("preset", "image_size", "num_layers", "requested_batch_size", "mode")
PRECISIONS = ("float32 (highest)", "tf32", "bfloat16", "int8")
COLORS = {OURS: "#d65f00", "timm": "#5b7083", "keras_hub": "#9fb1c1"}
RUNTIMES = {
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "torch": "PyTorch",
    "jax": "JAX",
    "tensorflow": "TensorFlow",
}


def draw(rows, path):
    from matplotlib.figure import Figure  # without pyplot: no display is needed

    rows = _of_one_case(list(filter(is_measured, rows)))
    devices = grouped(rows, ("machine", "device_name"))
    bars = {device: _bars(of_one) for device, of_one in devices.items()}
    height = 1.1 + 0.36 * max(map(len, bars.values()), default=1)  # inches
    figure = Figure(figsize=(5.2 * max(1, len(bars)), height), layout="constrained")
    for place, ((machine, device_name), listed) in enumerate(bars.items(), start=1):
        axes = figure.add_subplot(1, len(bars), place)
        _panel(axes, listed)
        axes.set_title(_short(device_name or machine), fontsize=11, fontweight="bold", loc="left")
    if rows:
        first = rows[0]
        case = f"{results.model_name(first)}, {first['mode']}, batch {first['requested_batch_size']}"
        figure.suptitle(f"{case}: images/s, each package in its fastest runtime", fontsize=12)
    figure.savefig(path, dpi=110)


def _of_one_case(rows):
    cases = grouped(rows, CASE)
    wanted = (PRESET, None, None, BATCH_SIZE, MODE)
    if wanted in cases or not cases:
        return cases.get(wanted, [])
    return max(cases.values(), key=len)


def _bars(rows):
    """[(precision or "", label, row, ratio or None)] from top to bottom."""
    by_precision = collections.OrderedDict()
    for (precision,), of_one in grouped(rows, ("precision",)).items():
        by_precision[precision] = packages(of_one)
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
    places, place, last = [], 0.0, None
    for precision, _, _ in listed:
        place += 1.0 if precision == last or last is None else 1.7
        places.append(place)
        last = precision
    longest = max(speed(row) for _, row, _ in listed)
    for place, (_, row, ratio) in zip(places, listed):
        axes.barh(place, speed(row), 0.8, color=COLORS.get(row["package"], "#c8d2da"))
        beside = f"{speed(row):.0f}" if speed(row) >= 100 else f"{speed(row):.1f}"
        beside += f"  ({ratio:.2f} of the fastest peer)" if ratio else ""
        weight = "bold" if row["package"] == OURS else "normal"
        axes.text(speed(row) + longest / 60, place, beside, va="center", fontsize=9, fontweight=weight)
    labels = [f"{row['package']} in {RUNTIMES[row['runtime']]}" for _, row, _ in listed]
    axes.set_yticks(places, labels, fontsize=9)
    for precision in dict.fromkeys(name for name, _, _ in listed):
        top = min(at for at, (name, _, _) in zip(places, listed) if name == precision)
        axes.text(longest * 1.62, top, precision, ha="right", va="center", fontsize=10, style="italic")
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.64)
    axes.set_xticks([])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(left=False)


def _short(machine):
    """A CPU's name and the most that it has for half precision, of all that decides its speed."""
    name, *rest = machine.replace("(R)", "").split(", ")
    instructions = [word for word in rest if not word.endswith("cores")]
    return f"{name} ({instructions[-1]})" if instructions else name
