"""Measures keras_deit and its peers, and adds a row per measurement to a file of JSON lines.

    python -m benchmarks.run --subject keras_deit,keras_hub,timm --batch_size 1,8

Each subject runs in its own process. On a CPU, the subjects of one preset and batch size take turns
of a few steps, so that other load affects all alike. On a GPU or TPU, or with `--exclusive`, they
run one after the other: warm-up, then latency with a wait after each step, then throughput with
many steps in flight. Measurements that the file contains are skipped.
"""

import dataclasses
import itertools
import sys
import tempfile

from absl import app, flags

from benchmarks import digits, results
from benchmarks.environment import environment
from benchmarks.measure import EXCLUSIVE, IN_TURNS, make_case, measure_alone, measure_in_turns
from benchmarks.precision import DTYPES
from benchmarks.subjects import ONLY_BACKEND, SUBJECTS, Request, runtime_of

FLAGS = flags.FLAGS
BACKENDS, MODES = ("tensorflow", "jax", "torch"), ("inference", "training", "attention")
flags.DEFINE_list(
    "subject",
    ["keras_deit"],
    f"Subjects to measure, beside the ceiling. One or more of {', '.join(SUBJECTS)}.",
)
flags.DEFINE_list(
    "preset",
    ["deit_small_distilled_patch16_224"],
    "Names of published presets. The weights are random: speed does not depend on them.",
)
flags.DEFINE_list(
    "mode",
    ["inference"],
    f"One or more of {', '.join(MODES)}. attention is inference that returns all scores.",
)
flags.DEFINE_list(
    "backend",
    ["tensorflow"],
    f"One or more of {', '.join(BACKENDS)}. timm and transformers run on torch only.",
)
flags.DEFINE_list(
    "dtype",
    ["float32"],
    f"One or more of {', '.join(DTYPES)}. float32 has full precision on every device.",
)
flags.DEFINE_enum(
    "jit",
    "auto",
    ["auto", "on", "off"],
    "Whether to compile with XLA or torch.compile. auto measures both.",
)
flags.DEFINE_list(
    "batch_size", ["8"], "Images per step. Halved until it fits into memory; the row records it."
)
flags.DEFINE_enum("device", "cpu", ["cpu", "gpu", "tpu"], "Device to run on.")
flags.DEFINE_bool(
    "exclusive",
    None,
    "Run one process at a time, and measure latency and throughput separately. Default: on a "
    "GPU or TPU only.",
)
flags.DEFINE_list("image_size", None, "Image sizes in pixels. Default: the preset's.")
flags.DEFINE_list("num_layers", None, "Numbers of transformer blocks. Default: the preset's.")
flags.DEFINE_integer("rounds", 10, "In turns: number of turns per subject.", lower_bound=1)
flags.DEFINE_float("seconds_per_turn", 1.0, "In turns: duration of a turn, at least one step.")
flags.DEFINE_float("seconds", 30.0, "Exclusive: time for throughput; a third of it for latency.")
flags.DEFINE_integer("warmup_steps", 10, "Exclusive: steps before measuring.", lower_bound=1)
flags.DEFINE_integer(
    "steps_in_flight", 16, "Exclusive: steps dispatched before waiting.", lower_bound=1
)
flags.DEFINE_string("note", None, "What else runs on the machine; recorded in each row.")
flags.DEFINE_bool("retry", False, "Repeat measurements that failed or lacked a package.")
flags.DEFINE_string("output", "benchmarks.jsonl", "File to add rows to. Use one file per machine.")
flags.DEFINE_bool("smoke", False, "Try everything quickly: the digits model, two images, one turn.")

CHOICES = {"subject": tuple(SUBJECTS), "mode": MODES, "backend": BACKENDS, "dtype": DTYPES}


def groups(folder, preset, image_size, num_layers):
    """Yields groups of requests that are timed side by side."""
    for batch_size in map(int, FLAGS.batch_size):
        yield [
            Request(
                subject,
                preset,
                mode,
                backend,
                dtype,
                jit,
                batch_size,
                FLAGS.device,
                image_size,
                num_layers,
                folder,
            )
            for mode, dtype, subject, backend in itertools.product(
                FLAGS.mode, FLAGS.dtype, [*FLAGS.subject, "ceiling"], FLAGS.backend
            )
            if ONLY_BACKEND.get(subject, backend) == backend
            for jit in jits(subject, backend, mode)
        ]


def jits(subject, backend, mode):
    """Values of `jit` to measure: both if it is unknown which is faster."""
    if subject == "ceiling" or runtime_of(subject, backend) != backend:
        return (True,)  # a single product needs no compilation, and a runtime always compiles
    if FLAGS.jit != "auto":
        return (FLAGS.jit == "on",)
    if backend == "jax" or (
        backend == "torch" and subject not in ONLY_BACKEND and mode != "training"
    ):
        return (True,)  # a Keras model is never fastest without compilation
    return (True, False)


def check_flags():
    for name, choices in CHOICES.items():
        for value in getattr(FLAGS, name):
            if value not in choices:
                raise app.UsageError(
                    f"--{name} must list one or more of {', '.join(choices)}. Received: {value}"
                )
    for name, example in (
        ("batch_size", "1,8,32"),
        ("image_size", "224,384"),
        ("num_layers", "6,12"),
    ):
        values = getattr(FLAGS, name) or []
        if not all(value.isdigit() and int(value) > 0 for value in values):
            raise app.UsageError(
                f"--{name} must be a list of positive integers, such as {example}. Received: "
                f"{','.join(values)}"
            )
    backends = ",".join(FLAGS.backend)
    for subject in FLAGS.subject:
        backend = ONLY_BACKEND.get(subject)
        if backend is not None and backend not in FLAGS.backend:
            raise app.UsageError(
                f"--subject {subject} needs --backend {backend}. Received: {backends}"
            )
    if FLAGS.device != "cpu" and FLAGS.exclusive is False:
        raise app.UsageError(
            f"--device {FLAGS.device} allows one process at a time. Leave --noexclusive out."
        )
    if FLAGS.device == "tpu" and FLAGS.backend != ["jax"]:
        raise app.UsageError(f"--device tpu needs --backend jax. Received: {backends}")


def main(_):
    check_flags()
    exclusive = FLAGS.device != "cpu" if FLAGS.exclusive is None else FLAGS.exclusive
    if FLAGS.smoke:
        FLAGS.preset, FLAGS.batch_size = [digits.PRESET], ["2"]
        FLAGS.rounds, FLAGS.seconds_per_turn, FLAGS.seconds = 1, 0.0, 0.0
    common = environment(FLAGS.note) | {"timing": EXCLUSIVE if exclusive else IN_TURNS}
    try:
        rows = results.of_machine(FLAGS.output, common["machine"])
    except ValueError as error:
        sys.exit(str(error))
    done = results.done(rows, FLAGS.retry)
    sizes, depths = (
        [int(value) for value in values or []] or [None]
        for values in (FLAGS.image_size, FLAGS.num_layers)
    )
    for preset, image_size, num_layers in itertools.product(FLAGS.preset, sizes, depths):
        with tempfile.TemporaryDirectory() as folder:
            has_case = False
            for requests in groups(folder, preset, image_size, num_layers):
                missing = [
                    request for request in requests if results.key_of(request, common) not in done
                ]
                if not missing:
                    print(f"Skipped {heading(requests)}: {FLAGS.output} contains it")
                    continue
                if not has_case:
                    make_case(folder, preset, FLAGS.backend[0], image_size, num_layers)
                    has_case = True
                print(heading(requests), flush=True)
                if exclusive:
                    for request in missing:
                        row = measure_alone(
                            request,
                            common,
                            FLAGS.seconds,
                            FLAGS.warmup_steps,
                            FLAGS.steps_in_flight,
                        )
                        results.append(FLAGS.output, [row])
                else:  # the whole group: ratios compare turns of one group
                    turns = (FLAGS.rounds, FLAGS.seconds_per_turn)
                    results.append(FLAGS.output, measure_in_turns(requests, common, *turns))


def heading(requests):
    request = requests[0]
    return f"{results.model_name(dataclasses.asdict(request))}, batch {request.batch_size}"


if __name__ == "__main__":
    app.run(main)
