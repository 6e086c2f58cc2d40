"""Measures keras_deit and its peers, and adds a row for each to a file of JSON lines.

    python -m benchmarks.run --subject keras_deit,keras_hub,timm --preset deit_small_distilled_patch16_224 --batch_size 1,8

Each subject runs in a process of its own. Those of one preset and batch size are timed in turns, a few steps each, so that what else
the machine does falls on all alike. A measurement that the file has already is not taken again.
"""

import dataclasses
import itertools
import sys
import tempfile

from absl import app, flags

from benchmarks import digits, results
from benchmarks.environment import environment
from benchmarks.measure import make_case, measure
from benchmarks.subjects import ONLY_BACKEND, SUBJECTS, Request

FLAGS = flags.FLAGS
flags.DEFINE_list("subject", ["keras_deit"], f"Of {', '.join(SUBJECTS)}. The ceiling is always measured beside them.")
flags.DEFINE_list(
    "preset",
    ["deit_small_distilled_patch16_224"],
    "Names of the catalog. The weights are random: speed does not depend on them.",
)
flags.DEFINE_list("mode", ["inference"], "Of inference, training, attention (inference that returns every block's scores).")
flags.DEFINE_list("backend", ["tensorflow"], "Of tensorflow, jax, torch. timm and transformers run on torch alone.")
flags.DEFINE_list("dtype", ["float32"], "Of float32, mixed_bfloat16, mixed_float16, bfloat16, int8.")
flags.DEFINE_enum("jit", "auto", ["auto", "on", "off"], "Compiling: XLA, or torch.compile. auto measures both.")
flags.DEFINE_list("batch_size", ["8"], "Images in a step. Halved, and recorded so, where memory does not suffice.")
flags.DEFINE_enum("device", "cpu", ["cpu", "gpu", "tpu"], "Where to run.")
flags.DEFINE_list("image_size", None, "Pixels; by default the preset's.")
flags.DEFINE_list("num_layers", None, "Transformer blocks; by default the preset's.")
flags.DEFINE_integer("rounds", 10, "How many turns each subject has.", lower_bound=1)
flags.DEFINE_float("seconds_per_turn", 1.0, "How long a turn lasts, at least one step.")
flags.DEFINE_string("output", "benchmarks.jsonl", "File to add rows to.")
flags.DEFINE_bool("smoke", False, "The digits model, two images, one turn: does everything run?")

CHOICES = {
    "subject": tuple(SUBJECTS),
    "mode": ("inference", "training", "attention"),
    "backend": ("tensorflow", "jax", "torch"),
    "dtype": ("float32", "mixed_bfloat16", "mixed_float16", "bfloat16", "int8"),
}


def groups(folder, preset, image_size, num_layers):
    """Requests that are timed in turns, group by group."""
    for batch_size in map(int, FLAGS.batch_size):
        yield [
            Request(subject, preset, mode, backend, dtype, jit, batch_size, FLAGS.device, image_size, num_layers, folder)
            for mode, dtype, subject, backend in itertools.product(
                FLAGS.mode, FLAGS.dtype, [*FLAGS.subject, "ceiling"], FLAGS.backend
            )
            if ONLY_BACKEND.get(subject, backend) == backend
            for jit in jits(subject, backend, mode, dtype)
        ]


def jits(subject, backend, mode, dtype):
    """Whether to compile; both where it is not known which is faster."""
    if subject in ("ceiling", "openvino", "onnxruntime"):
        return (True,)  # a product alone has nothing to compile, and a runtime compiles by itself
    if FLAGS.jit != "auto":
        return (FLAGS.jit == "on",)
    if backend == "jax" or (backend == "torch" and subject not in ONLY_BACKEND and mode != "training"):
        return (True,)  # operation by operation is no Keras model's best
    return (True, False)


def main(_):
    for name, choices in CHOICES.items():
        for value in getattr(FLAGS, name):
            if value not in choices:
                raise app.UsageError(f"--{name} must be of {', '.join(choices)}. Received: {value}")
    for name, example in (("batch_size", "1,8,32"), ("image_size", "224,384"), ("num_layers", "6,12")):
        values = getattr(FLAGS, name) or []
        if not all(value.isdigit() and int(value) > 0 for value in values):
            raise app.UsageError(f"--{name} must be positive integers, such as {example}. Received: {','.join(values)}")
    for subject in FLAGS.subject:
        backend = ONLY_BACKEND.get(subject)
        if backend is not None and backend not in FLAGS.backend:
            raise app.UsageError(f"{subject} runs on {backend} alone: add it to --backend. Received: {','.join(FLAGS.backend)}")
    if FLAGS.smoke:
        FLAGS.preset, FLAGS.batch_size, FLAGS.rounds, FLAGS.seconds_per_turn = [digits.PRESET], ["2"], 1, 0.0
    try:
        done = {results.key(row) for row in results.read(FLAGS.output)}
    except ValueError as error:
        sys.exit(str(error))
    common = environment()
    sizes, depths = ([int(value) for value in values or []] or [None] for values in (FLAGS.image_size, FLAGS.num_layers))
    for preset, image_size, num_layers in itertools.product(FLAGS.preset, sizes, depths):
        with tempfile.TemporaryDirectory() as folder:
            todo = []
            for requests in groups(folder, preset, image_size, num_layers):
                wanted = [
                    results.key({**common, **dataclasses.asdict(r), "requested_batch_size": r.batch_size}) for r in requests
                ]
                if done.issuperset(wanted):
                    print(f"{heading(requests)} is in {FLAGS.output} already")
                else:
                    todo.append(requests)
            if todo:
                make_case(folder, preset, FLAGS.backend[0], image_size, num_layers)
            for requests in todo:
                print(heading(requests), flush=True)
                results.append(FLAGS.output, measure(requests, common, FLAGS.rounds, FLAGS.seconds_per_turn))


def heading(requests):
    request = requests[0]
    return f"{results.model_name(dataclasses.asdict(request))}, batch {request.batch_size}"


if __name__ == "__main__":
    app.run(main)
