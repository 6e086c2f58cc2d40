"""Measures the most important rows first, on an accelerator that is available for minutes only.

    python -m benchmarks.first_accelerator --device gpu --minutes 25 --output first_gpu

First it checks that the device computes the reference's logits. Then it measures the rows of PLAN
in their order. To continue when the time is over, run the same command again: measurements in the
folder are skipped. `--prepare` writes the weights beforehand, on any machine. The folder contains

    numbers.jsonl   whether the logits agree, by backend and precision
    rows.jsonl      the measurements
    summary.json    ratios to the fastest peer, what was not measured and why, what is left

`python -m benchmarks.report --input first_gpu/rows.jsonl` prints the table. TensorFlow is not
needed. A package that is not installed gets a row that says so.
"""

import dataclasses
import importlib.util
import itertools
import json
import pathlib
import sys
import time

from absl import app, flags

from benchmarks import results
from benchmarks.environment import environment, gpu
from benchmarks.headline import headlines, speed
from benchmarks.measure import EXCLUSIVE, STARTUP_SECONDS, make_case, measure_alone
from benchmarks.subjects import ONLY_BACKEND, Request

FLAGS = flags.FLAGS
SMALL, BASE = "deit_small_distilled_patch16_224", "deit_base_distilled_patch16_224"
TINY = "deit_tiny_distilled_patch16_224"
PEERS = ("keras_deit", "timm", "keras_hub")
ALL = (*PEERS, "ceiling")
# (preset, mode, dtype, batch size, subjects), most valuable first. An entry takes about 4 minutes.
PLAN = (
    (SMALL, "inference", "bfloat16", 128, ALL),
    (SMALL, "training", "mixed_bfloat16", 128, PEERS),
    (BASE, "inference", "bfloat16", 128, PEERS),
    (SMALL, "inference", "bfloat16", 8, PEERS),
    (SMALL, "inference", "bfloat16", 1, PEERS),
    (SMALL, "inference", "bfloat16", 512, PEERS),
    (BASE, "training", "mixed_bfloat16", 64, PEERS),
    (BASE, "inference", "bfloat16", 8, PEERS),
    (BASE, "inference", "bfloat16", 1, PEERS),
    (BASE, "inference", "bfloat16", 512, PEERS),
    (SMALL, "inference", "tf32", 128, ALL),
    (SMALL, "inference", "float32", 128, ALL),
    (TINY, "inference", "bfloat16", 128, PEERS),
    (SMALL, "training", "tf32", 128, PEERS),
    (SMALL, "attention", "bfloat16", 8, ("keras_deit", "transformers")),
    (SMALL, "inference", "int8", 128, ("keras_deit", "keras_hub")),
)
TINY_PLAN = (
    (TINY, "inference", "bfloat16", 2, ALL),
    (TINY, "training", "mixed_bfloat16", 2, ("keras_deit",)),
)
TINY_MODEL = {"image_size": 32, "num_layers": 1}


def backends(device, wanted):
    """The backends of --backend, or all installed ones; the one for every device comes first."""
    if device == "tpu":
        return ["jax"]
    return wanted or [name for name in ("jax", "torch", "tensorflow") if _is_installed(name)]


def _is_installed(name):
    return importlib.util.find_spec(name) is not None


def requests(plan, device, names, cases, sizes):
    """The plan as requests: ours on every backend, a peer on the first that it has.

    Peers on the other backends come last.
    """
    last = []
    for preset, mode, dtype, batch_size, subjects in plan:
        for subject, backend in itertools.product(subjects, names):
            if ONLY_BACKEND.get(subject, backend) != backend:
                continue
            request = Request(
                subject,
                preset,
                mode,
                backend,
                dtype,
                True,
                batch_size,
                device,
                sizes.get("image_size"),
                sizes.get("num_layers"),
                str(cases / preset),
            )
            if subject == "keras_deit" or backend == names[0] or subject in ONLY_BACKEND:
                yield request
            else:
                last.append(request)
    yield from last


def first_look(device, names, cases, sizes):
    """Checks that each backend computes the reference's logits in each precision."""
    dtypes = ("float32", "tf32", "bfloat16") if device == "gpu" else ("float32", "bfloat16")
    plan = [(TINY, "inference", dtype, 2, ("keras_deit",)) for dtype in dtypes]
    return requests(plan, device, names, cases, sizes)


class Clock:
    """Knows whether another measurement fits into the remaining time."""

    def __init__(self, minutes):
        self._started = time.monotonic()
        self._seconds = 60 * minutes
        self._longest = 0.0

    @property
    def spent(self):
        return time.monotonic() - self._started

    @property
    def left(self):
        return self._seconds - self.spent

    def has_time(self, at_least):
        """Whether there is time for as long as the longest measurement so far."""
        return self.left >= max(at_least, self._longest)

    def took(self, seconds):
        self._longest = max(self._longest, seconds)


def measure_all(listed, file, common, clock, seconds, prepare_case, retry=False):
    """Adds a row for each request that the file lacks, while there is time; returns what is
    left.
    """
    done = results.done(results.of_machine(file, common["machine"]), retry)
    left = [request for request in listed if results.key_of(request, common) not in done]
    while left and clock.has_time(2 * seconds):
        request = left[0]
        prepare_case(request)
        begun = clock.spent
        limit = min(STARTUP_SECONDS, clock.left)
        row = measure_alone(request, common, seconds, startup_seconds=limit)
        if clock.left <= 0 and row["status"] == "failed":
            break  # no time left: this is no failure of the subject, so no row
        results.append(file, [row])
        clock.took(clock.spent - begun)
        left.pop(0)
        if row["status"] == "failed" and request.jit and request.backend == "torch":
            left.insert(0, dataclasses.replace(request, jit=False))  # better than no measurement
    return left


def summary(rows, left, common, clock):
    return {
        **common,
        "gpu": gpu(),
        "device_name": next((row["device_name"] for row in rows if row.get("device_name")), None),
        "minutes_spent": round(clock.spent / 60, 2),
        "headlines": [
            {
                "model": results.model_name(found["ours"]),
                "mode": found["ours"]["mode"],
                "batch_size": found["ours"]["batch_size"],
                "precision": found["precision"],
                "keras_deit": _figures(found["ours"]),
                "fastest_peer": found["peer"] and _figures(found["peer"]),
                "ratio": found["ratio"],
                "same_runtime": found["same_runtime"],
            }
            for found in headlines(rows)
        ],
        "not_measured": [
            {name: row.get(name) for name in (*results.KEY[1:], "status", "message")}
            for row in rows
            if row["status"] != "measured"
        ],
        "left": [
            {name: value for name, value in dataclasses.asdict(request).items() if name != "folder"}
            for request in left
        ],
    }


def _figures(row):
    names = ("package", "runtime", "step_ms_median", "step_ms_p99", "mfu", "peak_device_memory_mib")
    return {"images_per_second": speed(row)} | {name: row[name] for name in names}


def define_flags():
    flags.DEFINE_enum(
        "device", "gpu", ["gpu", "tpu", "cpu"], "Device to measure. cpu only tries the program."
    )
    flags.DEFINE_float("minutes", 25.0, "Time until the program must finish.", lower_bound=0.0)
    flags.DEFINE_float("seconds", 20.0, "Time for throughput; a third of it for latency.")
    flags.DEFINE_list(
        "backend", [], "One or more of jax, torch, tensorflow. Default: all that are installed."
    )
    flags.DEFINE_string("output", "first_accelerator", "Folder for the results.")
    flags.DEFINE_string("cases", None, "Folder for the weights. Default: in --output.")
    flags.DEFINE_bool("prepare", False, "Only write the weights that all subjects share.")
    flags.DEFINE_bool("tiny", False, "Try everything quickly: a model of one block, short times.")
    flags.DEFINE_bool("retry", False, "Repeat measurements that failed or lacked a package.")
    flags.DEFINE_string("note", None, "What else runs on the machine; recorded in each row.")


def main(_):
    names = backends(FLAGS.device, FLAGS.backend)
    if not names:
        raise app.UsageError(
            "--backend: No backend is installed. Run `pip install jax` or `pip install torch`."
        )
    folder = pathlib.Path(FLAGS.output)
    # Hundreds of MB that nobody needs later
    cases = pathlib.Path(FLAGS.cases or f"{FLAGS.output}_cases")
    sizes = TINY_MODEL if FLAGS.tiny else {}
    seconds = 0.1 if FLAGS.tiny else FLAGS.seconds
    clock = Clock(FLAGS.minutes)

    def prepare_case(request):
        if not (pathlib.Path(request.folder) / "case.npz").exists():  # written last
            size = (request.image_size, request.num_layers)
            make_case(request.folder, request.preset, names[0], *size)

    looks = list(first_look(FLAGS.device, names, cases, sizes))
    plan = TINY_PLAN if FLAGS.tiny else PLAN
    listed = list(requests(plan, FLAGS.device, names, cases, sizes))
    if FLAGS.prepare:
        for request in looks + listed:
            prepare_case(request)
        return
    common = environment(FLAGS.note) | {"timing": EXCLUSIVE}
    short = min(seconds, 1.0)
    files = (folder / "numbers.jsonl", folder / "rows.jsonl")
    try:
        left = measure_all(looks, files[0], common, clock, short, prepare_case, FLAGS.retry)
        left += measure_all(listed, files[1], common, clock, seconds, prepare_case, FLAGS.retry)
    except ValueError as error:
        sys.exit(str(error))
    found = summary([row for file in files for row in results.read(file)], left, common, clock)
    (folder / "summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(
        f"{len(found['headlines'])} ratios, {len(found['not_measured'])} not measured, "
        f"{len(left)} left: {folder / 'summary.json'}"
    )


if __name__ == "__main__":
    define_flags()
    app.run(main)
