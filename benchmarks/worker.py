"""Runs one subject in its own process: builds it, checks its outputs, and times steps on command.

Reads a request as JSON from its first argument, and commands as JSON lines from standard input:
`{"steps": 20}` waits for each step; `{"seconds": 30, "in_flight": 16}` dispatches many steps before
it waits. Each answer is a line that starts with MARK and continues with JSON; other output of the
libraries is ignored. The process ends with its input.
"""

import json
import os
import sys
import time

import numpy as np

from benchmarks.environment import peak_memory_bytes
from benchmarks.precision import array_dtype
from benchmarks.subjects import SUBJECTS, NotSupportedError, Request

MARK = "@benchmark "
# Largest |difference| of the logits from the reference, as a share of the largest logit. TF32 has
# float16's 10 bits; half precision rounds at every layer.
TOLERANCES = {"float32": 1e-4, "tf32": 2e-2, "float16": 2e-2, "bfloat16": 1e-1, "int8": 2e-1}


def say(**content):
    print(f"{MARK}{json.dumps(content)}", flush=True)


def prepare(request):
    if request.dtype == "tf32" and request.device != "gpu":  # checked before importing a framework
        raise NotSupportedError(
            f"--dtype tf32 needs --device gpu. Received: --device {request.device}"
        )
    started = time.perf_counter()
    subject = SUBJECTS[request.subject](request)
    built = time.perf_counter()
    subject.framework.wait(subject.step())
    first = time.perf_counter()
    return subject, {
        "build_seconds": built - started,
        "first_call_seconds": first - built,
        "logits_relative_error": None if subject.logits is None else check(subject, request),
        "device_name": subject.framework.device_name(),
    }


def tolerance(dtype):
    return TOLERANCES[dtype if dtype in TOLERANCES else array_dtype(dtype)]


def check(subject, request):
    """Raises an error if the outputs are wrong: wrong subjects are not timed."""
    with np.load(os.path.join(request.folder, "case.npz")) as case:
        found = in_batches(subject.logits, case["images"], request.batch_size)
        expected = case[subject.answers]
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not error <= tolerance(request.dtype):
        raise ValueError(
            f"The logits differ from the reference by {error:.1e} of the largest logit. At most "
            f"{tolerance(request.dtype):.0e} was expected."
        )
    return error


def in_batches(logits, images, batch_size):
    """Runs the images in batches of the size that the subject is compiled for."""
    starts = range(0, len(images), batch_size)
    batches = [images[start : start + batch_size] for start in starts]
    return np.concatenate(
        [
            logits(np.resize(batch, (batch_size, *batch.shape[1:])))[: len(batch)]
            for batch in batches
        ]
    )


def timed(subject, steps):
    """Latency: seconds of each step, from the call to the result."""
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        subject.framework.wait(subject.step())
        seconds.append(time.perf_counter() - started)
    return seconds


def timed_in_flight(subject, window, in_flight):
    """Throughput: seconds of each `in_flight` steps that are dispatched before waiting.

    Continues for the given seconds. The limit of steps in flight also limits the memory of their
    results.
    """
    seconds = []
    ended = time.perf_counter() + window
    while not seconds or time.perf_counter() < ended:
        started = time.perf_counter()
        subject.framework.wait([subject.step() for _ in range(in_flight)])
        seconds.append(time.perf_counter() - started)
    return seconds


def answer(subject, command):
    if "steps" in command:
        seconds = timed(subject, command["steps"])
    else:
        seconds = timed_in_flight(subject, command["seconds"], command["in_flight"])
    return {
        "seconds": seconds,
        "peak_host_memory_bytes": peak_memory_bytes(),
        "peak_device_memory_bytes": subject.framework.peak_device_memory_bytes(),
    }


def is_out_of_memory(error):
    words = f"{type(error).__name__} {error}".lower()
    signs = ("out of memory", "resource_exhausted", "outofmemory")
    return isinstance(error, MemoryError) or any(sign in words for sign in signs)


def main():
    request = Request(**json.loads(sys.argv[1]))
    try:
        subject, facts = prepare(request)
        say(status="ready", flops_of_product=subject.flops, **facts)
        for line in sys.stdin:
            say(status="timed", **answer(subject, json.loads(line)))
    except NotSupportedError as error:
        say(status="not supported", message=str(error))
    except ImportError as error:
        say(status="not installed", message=str(error))
    except Exception as error:
        status = "out of memory" if is_out_of_memory(error) else "failed"
        say(status=status, message=f"{type(error).__name__}: {str(error)[:500]}")


if __name__ == "__main__":
    main()
