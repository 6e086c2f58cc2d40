"""Measures keras_deit and its peers, and adds a row for each to a file of JSON lines.

    python -m benchmarks.run --subject keras_deit,keras_hub,timm --batch_size 1,8

Each subject runs in a process of its own. On a CPU those of one preset and batch size are timed in
turns, a few steps each, so that what else the machine does falls on all alike. On a GPU or a TPU,
and with `--exclusive`, they run one after the other: warm-up, latency with each step waited for,
and throughput with many steps in flight. A measurement that the file has is not taken again.
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
    f"Of {', '.join(SUBJECTS)}. The ceiling is always measured beside them.",
)
flags.DEFINE_list(
    "preset",
    ["deit_small_distilled_patch16_224"],
    "Names of the catalog. The weights are random: speed does not depend on them.",
)
flags.DEFINE_list(
    "mode",
    ["inference"],
    f"Of {', '.join(MODES)}. attention is inference that returns every block's scores.",
)
flags.DEFINE_list(
    "backend",
    ["tensorflow"],
    f"Of {', '.join(BACKENDS)}. timm and transformers run on torch alone.",
)
flags.DEFINE_list(
    "dtype", ["float32"], f"Of {', '.join(DTYPES)}. float32 has full products on every device."
)
flags.DEFINE_enum(
    "jit", "auto", ["auto", "on", "off"], "Compiling: XLA, or torch.compile. auto measures both."
)
flags.DEFINE_list(
    "batch_size", ["8"], "Images in a step. Halved, and recorded so, where memory does not suffice."
)
flags.DEFINE_enum("device", "cpu", ["cpu", "gpu", "tpu"], "Where to run.")
flags.DEFINE_bool(
    "exclusive",
    None,
    "One process at a time, latency apart from throughput; by default on a GPU and a TPU.",
)
flags.DEFINE_list("image_size", None, "Pixels; by default the preset's.")
flags.DEFINE_list("num_layers", None, "Transformer blocks; by default the preset's.")
flags.DEFINE_integer("rounds", 10, "In turns: how many each subject has.", lower_bound=1)
flags.DEFINE_float("seconds_per_turn", 1.0, "In turns: how long one is, at least one step.")
flags.DEFINE_float("seconds", 30.0, "Exclusive: window of throughput; a third of it for latency.")
flags.DEFINE_integer("warmup_steps", 10, "Exclusive: steps before either.", lower_bound=1)
flags.DEFINE_integer(
    "steps_in_flight", 16, "Exclusive: steps dispatched before one wait.", lower_bound=1
)
flags.DEFINE_string("note", None, "What else ran on the machine; kept in each row.")
flags.DEFINE_bool("retry", False, "Measures again what failed or was not installed.")
flags.DEFINE_string("output", "benchmarks.jsonl", "File to add rows to: one a machine.")
flags.DEFINE_bool("smoke", False, "The digits model, two images, one turn: does everything run?")

CHOICES = {"subject": tuple(SUBJECTS), "mode": MODES, "backend": BACKENDS, "dtype": DTYPES}


def groups(folder, preset, image_size, num_layers):
    """Requests that belong side by side, group by group."""
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
    """Whether to compile; both where it is not known which is faster."""
    if subject == "ceiling" or runtime_of(subject, backend) != backend:
        return (True,)  # a product alone has nothing to compile, and a runtime compiles by itself
    if FLAGS.jit != "auto":
        return (FLAGS.jit == "on",)
    if backend == "jax" or (
        backend == "torch" and subject not in ONLY_BACKEND and mode != "training"
    ):
        return (True,)  # operation by operation is no Keras model's best
    return (True, False)


def check_flags():
    for name, choices in CHOICES.items():
        for value in getattr(FLAGS, name):
            if value not in choices:
                raise app.UsageError(f"--{name} must be of {', '.join(choices)}. Received: {value}")
    for name, example in (
        ("batch_size", "1,8,32"),
        ("image_size", "224,384"),
        ("num_layers", "6,12"),
    ):
        values = getattr(FLAGS, name) or []
        if not all(value.isdigit() and int(value) > 0 for value in values):
            raise app.UsageError(
                f"--{name} must be positive integers, such as {example}. Received: "
                f"{','.join(values)}"
            )
    backends = ",".join(FLAGS.backend)
    for subject in FLAGS.subject:
        backend = ONLY_BACKEND.get(subject)
        if backend is not None and backend not in FLAGS.backend:
            raise app.UsageError(
                f"{subject} runs on {backend} alone: add it to --backend. Received: {backends}"
            )
    if FLAGS.device != "cpu" and FLAGS.exclusive is False:
        raise app.UsageError(
            f"--device {FLAGS.device} admits one process at a time: leave --noexclusive out."
        )
    if FLAGS.device == "tpu" and FLAGS.backend != ["jax"]:
        raise app.UsageError(f"TPUs are measured on JAX: use --backend jax. Received: {backends}")


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
                    print(f"{heading(requests)} is in {FLAGS.output} already")
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
                else:  # all of them: ratios are of one group's turns
                    turns = (FLAGS.rounds, FLAGS.seconds_per_turn)
                    results.append(FLAGS.output, measure_in_turns(requests, common, *turns))


def heading(requests):
    request = requests[0]
    return f"{results.model_name(dataclasses.asdict(request))}, batch {request.batch_size}"


if __name__ == "__main__":
    app.run(main)
