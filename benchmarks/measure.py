"""Times subjects in turns, each in a process of its own."""

import contextlib
import dataclasses
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading

import numpy as np

from benchmarks.environment import memory_bytes
from benchmarks.flops import forward_flops, training_flops
from benchmarks.subjects import backbone_config, number_of_classes
from benchmarks.worker import MARK

STARTUP_SECONDS, TURN_SECONDS = 900, 300


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


def measure(requests, common, rounds, seconds_per_turn):
    """Rows of requests that are timed in turns: `rounds` of them, each `seconds_per_turn` long or one step."""
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
                steps[id(worker)] = max(1, int(seconds_per_turn / min(worker.seconds or [1.0])))
                worker.seconds.clear()
        warn_of_short_memory(workers)
        for round_number in range(rounds):
            print(f"\r  round {round_number + 1} of {rounds}", end="", flush=True)
            for worker in workers:
                if worker.is_ready:
                    worker.turn(steps[id(worker)])
        print(flush=True)
        return [row(worker, requested, common) for worker, requested in zip(workers, requests)]
    finally:
        for worker in workers:
            worker.close()


def warn_of_short_memory(workers):
    """Subjects that take turns hold their memory together."""
    held, all_of_it = sum(worker.last.get("peak_host_memory_bytes") or 0 for worker in workers), memory_bytes()
    if all_of_it and held > 0.9 * all_of_it:
        print(
            f"  The {len(workers)} processes have held {held / 2**30:.1f} GiB and the machine has {all_of_it / 2**30:.1f}: steps may wait for "
            "memory. Measure fewer at a time (--subject, --backend, --dtype, --jit)."
        )


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


def make_case(folder, preset, backend, image_size=None, num_layers=None):
    """Writes what the subjects share, in a process of its own: this one imports no framework."""
    command = [sys.executable, "-m", "benchmarks.case", folder, preset, str(image_size or 0), str(num_layers or 0)]
    made = subprocess.run(command, env=worker_environment(backend), stderr=subprocess.PIPE, text=True, check=False)
    if made.returncode:
        sys.exit(f"{preset} cannot be measured. {made.stderr.strip().splitlines()[-1]}")


def describe(request):
    jit = "jit" if request.jit else "no jit"
    return f"{request.subject} on {request.backend}, {request.dtype}, {jit}, {request.mode}, batch {request.batch_size}"


def worker_environment(backend):
    return {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
