"""Measures keras_deit and its peers, and adds a row for each to a file of JSON lines.

    python -m benchmarks.run --subject keras_deit,keras_hub,timm --preset deit_small_distilled_patch16_224 --batch_size 1,8

Each subject runs in a process of its own. Those of one preset, mode, dtype and batch size are timed in turns, a few steps each, so that
what else the machine does falls on all alike. A measurement that the file has already is not taken again.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading

import numpy as np
from absl import app, flags

from benchmarks import results
from benchmarks.environment import environment
from benchmarks.flops import forward_flops, training_flops
from benchmarks.subjects import ONLY_BACKEND, SUBJECTS, Request, backbone_config, number_of_classes
from benchmarks.worker import MARK

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
flags.DEFINE_integer("image_size", None, "Pixels; by default the preset's.", lower_bound=1)
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
STARTUP_SECONDS, TURN_SECONDS = 900, 300
SMOKE_PRESET = "deit_nano_distilled_patch4_32_digits"


class Worker:
    """A subject's process, seen from here."""

    def __init__(self, request):
        self.request = request
        self.seconds, self.last = [], {}
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(dataclasses.asdict(request))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=worker_environment(request.backend),
        )
        self._answers = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.facts = self._answer(STARTUP_SECONDS)

    @property
    def is_ready(self):
        return self.facts["status"] == "ready"

    def turn(self, steps):
        with contextlib.suppress(BrokenPipeError):  # a process that is gone answers so below
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        answer = self._answer(TURN_SECONDS)
        if answer["status"] == "timed":
            self.seconds += answer["seconds"]
            self.last = answer
        else:
            self.facts = answer

    def close(self):
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _listen(self):
        for line in self._process.stdout:
            if line.startswith(MARK):
                self._answers.put(json.loads(line.removeprefix(MARK)))
        self._answers.put(None)

    def _answer(self, seconds):
        try:
            answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            return {"status": "failed", "message": f"no answer for {seconds} s"}
        if answer is None:
            self._process.wait()
            self._log.seek(0)
            lines = self._log.read().strip().splitlines()
            killed = self._process.returncode == -9
            return {
                "status": "out of memory" if killed else "failed",
                "message": f"the process ended with {self._process.returncode}: {lines[-1] if lines else ''}"[:500],
            }
        return answer


def start(request):
    """A worker at the largest batch size that fits, from the one asked for downwards."""
    while True:
        worker = Worker(request)
        if worker.facts["status"] != "out of memory" or request.batch_size == 1:
            return worker
        worker.close()
        request = dataclasses.replace(request, batch_size=request.batch_size // 2)


def measure(requests, common):
    """Rows of requests that are timed in turns."""
    workers = []
    try:
        for request in requests:
            print(f"  {describe(request)}: ", end="", flush=True)
            worker = start(request)
            workers.append(worker)
            print(worker.facts["status"] + (f": {worker.facts['message']}" if "message" in worker.facts else ""), flush=True)
        steps = {}
        for worker in workers:
            if worker.is_ready:  # warm-up, and how many steps a turn has
                worker.turn(3)
                steps[id(worker)] = max(1, int(FLAGS.seconds_per_turn / min(worker.seconds or [1.0])))
                worker.seconds.clear()
        for round_number in range(FLAGS.rounds):
            print(f"\r  round {round_number + 1} of {FLAGS.rounds}", end="", flush=True)
            for worker in workers:
                if worker.is_ready:
                    worker.turn(steps[id(worker)])
        print(flush=True)
        return [row(worker, requested, common) for worker, requested in zip(workers, requests)]
    finally:
        for worker in workers:
            worker.close()


def row(worker, requested, common):
    request, facts = worker.request, worker.facts
    content = {
        **dataclasses.asdict(request),
        "requested_batch_size": requested.batch_size,
        **facts,
        **common,
    }
    del content["folder"]
    if not worker.is_ready or not worker.seconds:
        return content
    content["status"] = "measured"
    step_ms = 1000 * np.asarray(worker.seconds)
    median, p10, p90 = (float(np.percentile(step_ms, q)) for q in (50, 10, 90))
    flops = content.pop("flops_of_product")
    if flops is None:
        backbone, num_classes = backbone_config(request.folder), number_of_classes(request.folder)
        count = training_flops if request.mode == "training" else forward_flops
        flops = request.batch_size * count(backbone, num_classes, 2 if backbone["use_distillation_token"] else 1)
    content |= {
        "n": len(step_ms),
        "step_ms_median": median,
        "step_ms_p10": p10,
        "step_ms_p90": p90,
        "images_per_second": None if request.subject == "ceiling" else 1000 * request.batch_size / median,
        "gflop_per_second": flops / median / 1e6,
    }
    for where in ("host", "device"):
        peak = worker.last.get(f"peak_{where}_memory_bytes")
        content[f"peak_{where}_memory_mib"] = peak and round(peak / 2**20, 1)
    return content


def describe(request):
    jit = "jit" if request.jit else "no jit"
    return f"{request.subject} on {request.backend}, {request.dtype}, {jit}, {request.mode}, batch {request.batch_size}"


def groups(folder, preset):
    """Requests that are timed in turns, group by group."""
    for mode, dtype, batch_size in itertools.product(FLAGS.mode, FLAGS.dtype, map(int, FLAGS.batch_size)):
        yield [
            Request(subject, preset, mode, backend, dtype, jit, batch_size, FLAGS.device, FLAGS.image_size, folder)
            for subject, backend in itertools.product([*FLAGS.subject, "ceiling"], FLAGS.backend)
            if ONLY_BACKEND.get(subject, backend) == backend
            for jit in jits(subject, backend, mode)
        ]


def jits(subject, backend, mode):
    """Whether to compile; both where it is not known which is faster."""
    if subject in ("ceiling", "openvino", "onnxruntime"):
        return (True,)  # a product alone has nothing to compile, and a runtime compiles by itself
    if FLAGS.jit != "auto":
        return (FLAGS.jit == "on",)
    if backend == "jax":
        return (True,)  # operation by operation is nobody's best
    if backend == "torch" and mode == "training" and subject not in ONLY_BACKEND:
        return (False,)  # torch.compile of a Keras training step takes many minutes: ask for it with `--jit on`
    return (True, False)


def main(_):
    for name, choices in CHOICES.items():
        for value in getattr(FLAGS, name):
            if value not in choices:
                raise app.UsageError(f"--{name} must be of {', '.join(choices)}. Received: {value}")
    if not all(size.isdigit() and int(size) > 0 for size in FLAGS.batch_size):
        raise app.UsageError(f"--batch_size must be positive integers, such as 1,8,32. Received: {','.join(FLAGS.batch_size)}")
    for subject in FLAGS.subject:
        backend = ONLY_BACKEND.get(subject)
        if backend is not None and backend not in FLAGS.backend:
            raise app.UsageError(f"{subject} runs on {backend} alone: add it to --backend. Received: {','.join(FLAGS.backend)}")
    if FLAGS.smoke:
        FLAGS.preset, FLAGS.batch_size, FLAGS.rounds, FLAGS.seconds_per_turn = [SMOKE_PRESET], ["2"], 1, 0.0
    try:
        done = {results.key(row) for row in results.read(FLAGS.output)}
    except ValueError as error:
        sys.exit(str(error))
    common = environment()
    for preset in FLAGS.preset:
        with tempfile.TemporaryDirectory() as folder:
            todo = []
            for requests in groups(folder, preset):
                wanted = [results.key(dataclasses.asdict(r) | {"requested_batch_size": r.batch_size}) for r in requests]
                if done.issuperset(wanted):
                    print(f"{heading(requests)} is in {FLAGS.output} already")
                else:
                    todo.append(requests)
            if todo:
                make_case(folder, preset)
            for requests in todo:
                print(heading(requests), flush=True)
                results.append(FLAGS.output, measure(requests, common))


def heading(requests):
    request = requests[0]
    return f"{request.preset}, {request.mode}, {request.dtype}, batch {request.batch_size}"


def make_case(folder, preset):
    """Writes what the subjects share, in a process of its own: this one imports no framework."""
    command = [sys.executable, "-m", "benchmarks.case", folder, preset]
    if FLAGS.image_size is not None:
        command.append(str(FLAGS.image_size))
    made = subprocess.run(command, env=worker_environment(FLAGS.backend[0]), stderr=subprocess.PIPE, text=True, check=False)
    if made.returncode:
        sys.exit(f"{preset} cannot be measured. {made.stderr.strip().splitlines()[-1]}")


def worker_environment(backend):
    return {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}


if __name__ == "__main__":
    app.run(main)
