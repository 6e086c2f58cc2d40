"""Times subjects, each in its own process: in turns, or one after the other.

In turns on a CPU, so that other load affects all alike. One after the other on a device that allows
only one process (a TPU) or whose memory they would have to share (a GPU).
"""

import contextlib
import dataclasses
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

from benchmarks.environment import gpu, load_average, memory_bytes, worker_environment
from benchmarks.errors import last_error
from benchmarks.flops import forward_flops, training_flops
from benchmarks.peaks import mfu
from benchmarks.precision import precision
from benchmarks.subjects import backbone_config, number_of_classes, package_of, runtime_of
from benchmarks.worker import MARK

STARTUP_SECONDS, TURN_SECONDS = 900, 300
IN_TURNS, EXCLUSIVE = "in turns", "exclusive"  # a row's `timing`


class Worker:
    """The process of a subject.

    Args:
        request: `Request`.
        startup_seconds: time limit to build, compile and check the subject.
    """

    def __init__(self, request, startup_seconds=STARTUP_SECONDS):
        self.request = request
        self.seconds, self.last = [], {}
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(dataclasses.asdict(request))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=worker_environment(request.backend, request.device),
        )
        self._answers = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.facts = self._answer(startup_seconds)

    @property
    def is_ready(self):
        return self.facts["status"] == "ready"

    def turn(self, steps):
        """Runs steps, waits for each, and adds the times to `seconds`."""
        self._tell({"steps": steps})
        self.seconds += self._timed(TURN_SECONDS)

    def flight(self, seconds, in_flight):
        """Seconds of each `in_flight` steps, and the state of the GPU during them."""
        self._tell({"seconds": seconds, "in_flight": in_flight})
        time.sleep(seconds / 2)
        state = gpu() if self.request.device == "gpu" else None
        return self._timed(TURN_SECONDS + seconds), state

    def close(self):
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _tell(self, command):
        with contextlib.suppress(
            BrokenPipeError
        ):  # the answer below reports a process that has ended
            self._process.stdin.write(f"{json.dumps(command)}\n")
            self._process.stdin.flush()

    def _timed(self, seconds):
        answer = self._answer(seconds)
        if answer["status"] == "timed":
            self.last = answer
            return answer["seconds"]
        self.facts = answer
        return []

    def _listen(self):
        for line in self._process.stdout:
            if line.startswith(MARK):
                self._answers.put(json.loads(line.removeprefix(MARK)))
        self._answers.put(None)

    def _answer(self, seconds):
        try:
            answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            return {"status": "failed", "message": f"no answer for {seconds:.0f} s"}
        if answer is None:
            self._process.wait()
            self._log.seek(0)
            code, last = self._process.returncode, last_error(self._log.read())
            return {
                "status": "out of memory" if code == -9 else "failed",
                "message": f"the process ended with {code}: {last}"[:500],
            }
        return answer


def start(request, startup_seconds=STARTUP_SECONDS):
    """Starts a worker at the largest batch size that fits, at most the requested one."""
    while True:
        worker = Worker(request, startup_seconds)
        if worker.facts["status"] != "out of memory" or request.batch_size == 1:
            return worker
        worker.close()
        request = dataclasses.replace(request, batch_size=request.batch_size // 2)


def measure_in_turns(requests, common, rounds, seconds_per_turn):
    """Rows of requests with `rounds` turns each, of `seconds_per_turn` or one step."""
    workers = []
    common = {**common, "timing": IN_TURNS, "load_average": load_average()}
    try:
        for request in requests:
            print(f"  {describe(request)}: ", end="", flush=True)
            worker = start(request)
            workers.append(worker)
            print(_said(worker.facts), flush=True)
        steps = {}
        for worker in workers:
            if worker.is_ready:  # warm-up, which also gives the number of steps per turn
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


def measure_alone(
    request, common, seconds, warmup_steps=10, steps_in_flight=16, startup_seconds=STARTUP_SECONDS
):
    """The row of a request that runs alone on the device: latency, then throughput.

    Args:
        request: `Request`.
        common: dict, what all rows of a run have in common.
        seconds: time for throughput; a third of it for latency.
        warmup_steps: number of steps before measuring.
        steps_in_flight: number of steps dispatched before waiting. It is 2 if attention scores are
            returned, because they would fill the memory.
        startup_seconds: time limit to build, compile and check the subject.
    """
    print(f"  {describe(request)}: ", end="", flush=True)
    common = {**common, "timing": EXCLUSIVE, "load_average": load_average()}
    in_flight = 2 if request.mode == "attention" else steps_in_flight
    waits, state = [], None
    worker = start(request, startup_seconds)
    try:
        if worker.is_ready:
            worker.turn(warmup_steps)
        if worker.is_ready:
            steps = max(10, int(seconds / 3 / min(worker.seconds)))
            worker.seconds.clear()
            worker.turn(steps)
        if worker.is_ready:
            waits, state = worker.flight(seconds, in_flight)
        content = row(worker, request, common)
    finally:
        worker.close()
    if waits:
        content |= _throughput(content, waits, in_flight, state)
    print(_said(content), flush=True)
    return content


def _throughput(content, waits, in_flight, state):
    """The values of a row that many steps in flight change."""
    seconds = sum(waits) / len(waits) / in_flight  # per step
    faster = content["step_ms_median"] / 1000 / seconds
    speed = content["images_per_second"]
    return {
        "throughput_step_ms": 1000 * seconds,
        "throughput_seconds": sum(waits),
        "throughput_steps": len(waits) * in_flight,
        "steps_in_flight": in_flight,
        "images_per_second": speed and speed * faster,
        "gflop_per_second": content["gflop_per_second"] * faster,
        "mfu": content["mfu"] and content["mfu"] * faster,
        "gpu": state,
    }


def _said(facts):
    if facts["status"] == "measured":
        speed = facts["images_per_second"]
        return f"{facts['gflop_per_second']:.0f} GFLOP/s" + (
            f", {speed:.1f} images/s" if speed else ""
        )
    return facts["status"] + (f": {facts['message']}" if "message" in facts else "")


def warn_of_short_memory(workers):
    """Warns if subjects that take turns need more memory together than the machine has."""
    held = sum(worker.last.get("peak_host_memory_bytes") or 0 for worker in workers)
    all_of_it = memory_bytes()
    if all_of_it and held > 0.9 * all_of_it:
        print(
            f"  The {len(workers)} processes have held {held / 2**30:.1f} GiB and the machine has "
            f"{all_of_it / 2**30:.1f}: steps may wait for memory. Measure fewer at a time "
            "(--subject, --backend, --dtype, --jit)."
        )


def row(worker, requested, common):
    """The row of a worker: its status, and its latencies if it was measured."""
    request = worker.request
    content = {
        **dataclasses.asdict(request),
        "requested_batch_size": requested.batch_size,
        "package": package_of(request.subject),
        "runtime": runtime_of(request.subject, request.backend),
        "precision": precision(request.dtype),
        **worker.facts,
        **common,
    }
    del content["folder"]
    flops = content.pop("flops_of_product", None)
    if not worker.is_ready or not worker.seconds:
        return content
    content["status"] = "measured"
    step_ms = 1000 * np.asarray(worker.seconds)
    median, p10, p90, p99 = (float(np.percentile(step_ms, q)) for q in (50, 10, 90, 99))
    flops = flops or model_flops(request)
    content |= {
        "n": len(step_ms),
        "step_ms_median": median,
        "step_ms_p10": p10,
        "step_ms_p90": p90,
        "step_ms_p99": p99,
        "images_per_second": None
        if request.subject == "ceiling"
        else 1000 * request.batch_size / median,
        "gflop_per_second": flops / median / 1e6,
        "mfu": mfu(flops, median / 1000, content.get("device_name"), request.dtype),
    }
    for where in ("host", "device"):
        peak = worker.last.get(f"peak_{where}_memory_bytes")
        content[f"peak_{where}_memory_mib"] = peak and round(peak / 2**20, 1)
    return content


def model_flops(request):
    """FLOPs of one step."""
    backbone, num_classes = backbone_config(request.folder), number_of_classes(request.folder)
    count = training_flops if request.mode == "training" else forward_flops
    heads = 2 if backbone["use_distillation_token"] else 1
    return request.batch_size * count(backbone, num_classes, heads)


def make_case(folder, preset, backend, image_size=None, num_layers=None):
    """Writes what the subjects share, in its own process, so that this one imports no framework.

    It always runs on the CPU, where the reference has full float32 precision.
    """
    command = [sys.executable, "-m", "benchmarks.case", folder, preset]
    command += [str(image_size or 0), str(num_layers or 0)]
    made = subprocess.run(
        command, env=worker_environment(backend), stderr=subprocess.PIPE, text=True, check=False
    )
    if made.returncode:
        sys.exit(f"{preset} cannot be measured. {last_error(made.stderr)}")


def describe(request):
    jit = "jit" if request.jit else "no jit"
    return (
        f"{request.subject} on {request.backend}, {request.dtype}, {jit}, {request.mode}, batch "
        f"{request.batch_size}"
    )
