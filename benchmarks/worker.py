"""One subject in a process of its own: builds, checks its answers, and times steps when it is told to.

Reads a request as JSON from its first argument, then commands from its standard input: a number of steps to time, until it closes.
Answers are lines of JSON that start with MARK; whatever else libraries print is not read.
"""

import json
import os
import sys
import time

import numpy as np

from benchmarks.environment import peak_memory_bytes
from benchmarks.subjects import SUBJECTS, NotSupportedError, Request

MARK = "@benchmark "
# Largest |difference| of the logits from the reference, as a share of the largest logit. Half precision rounds at every layer.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "int8": 2e-1}


def say(**content):
    print(f"{MARK}{json.dumps(content)}", flush=True)


def prepare(request):
    started = time.perf_counter()
    subject = SUBJECTS[request.subject](request)
    built = time.perf_counter()
    subject.framework.wait(subject.step())
    first = time.perf_counter()
    return subject, {
        "build_seconds": built - started,
        "first_call_seconds": first - built,
        "logits_relative_error": None if subject.logits is None else check(subject, request),
    }


def check(subject, request):
    """A subject is timed only if its answers are right."""
    with np.load(os.path.join(request.folder, "case.npz")) as case:
        found, expected = in_batches(subject.logits, case["images"], request.batch_size), case[subject.answers]
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    tolerance = TOLERANCES[request.dtype.removeprefix("mixed_")]
    if not error <= tolerance:
        raise ValueError(f"The logits differ from the reference by {error:.1e} of the largest, more than {tolerance:.0e}.")
    return error


def in_batches(logits, images, batch_size):
    """As many images at a time as the subject is compiled for."""
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    return np.concatenate([logits(np.resize(batch, (batch_size, *batch.shape[1:])))[: len(batch)] for batch in batches])


def timed(subject, steps):
    """Seconds of each step, from its call to its result."""
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        subject.framework.wait(subject.step())
        seconds.append(time.perf_counter() - started)
    return seconds


def is_out_of_memory(error):
    words = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(word in words for word in ("out of memory", "resource_exhausted", "oom"))


def main():
    request = Request(**json.loads(sys.argv[1]))
    try:
        subject, facts = prepare(request)
        say(status="ready", flops_of_product=subject.flops, **facts)
        for line in sys.stdin:
            seconds = timed(subject, int(line))
            say(
                status="timed",
                seconds=seconds,
                peak_host_memory_bytes=peak_memory_bytes(),
                peak_device_memory_bytes=subject.framework.peak_device_memory_bytes(),
            )
    except NotSupportedError as error:
        say(status="not supported", message=str(error))
    except ImportError as error:
        say(status="not installed", message=str(error))
    except Exception as error:
        status = "out of memory" if is_out_of_memory(error) else "failed"
        say(status=status, message=f"{type(error).__name__}: {str(error)[:500]}")


if __name__ == "__main__":
    main()
