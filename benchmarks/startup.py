"""How long `import` takes, each time in a new process.

python -m benchmarks.startup
"""

import os
import subprocess
import sys

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_list("modules", ["keras", "keras_deit", "keras_hub", "timm", "transformers"], "What to import.")
flags.DEFINE_enum("backend", "tensorflow", ["tensorflow", "jax", "torch"], "That of Keras.")
flags.DEFINE_integer("rounds", 5, "How often each is imported, in turns.", lower_bound=1)

PROGRAM = """
import time
started = time.perf_counter()
import {module}
seconds = time.perf_counter() - started
from benchmarks.environment import peak_memory_bytes
print("@", seconds, peak_memory_bytes() or 0)
"""


def main(_):
    found = {module: [] for module in FLAGS.modules}
    for _ in range(FLAGS.rounds):
        for module, values in found.items():
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM.format(module=module)],
                env={**os.environ, "KERAS_BACKEND": FLAGS.backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
                capture_output=True,
                text=True,
                check=False,
            )
            lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("@ ")]
            values.append([float(value) for value in lines[-1]] if lines else None)
    print("| module | seconds | peak MiB |\n| --- | --- | --- |")
    for module, values in found.items():
        if None in values:
            print(f"| {module} | cannot be imported | |")
        else:
            seconds, memory = np.median(values, axis=0)
            print(f"| {module} | {seconds:.1f} | {memory / 2**20:.0f} |")


if __name__ == "__main__":
    app.run(main)
