"""Measures the memory of a training step, and what reduces it.

    python -m benchmarks.training_memory --backend torch

It compares the plain step with gradient checkpointing and with gradient accumulation, each in its
own process. The memory is the peak of the process minus its memory after building the model.
"""

import os
import subprocess
import sys

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_enum("backend", "tensorflow", ["tensorflow", "jax", "torch"], "Keras backend.")
flags.DEFINE_string(
    "preset",
    "deit_small_distilled_patch16_224",
    "Name of a published preset; the weights are random.",
)
flags.DEFINE_integer("batch_size", 16, "Number of images per update.", lower_bound=4)
flags.DEFINE_bool("jit", False, "Whether to compile the step with XLA.")
flags.DEFINE_integer("updates", 3, "Number of updates to time, after the first.", lower_bound=1)

WAYS = {
    "as it is": (False, 1),
    "remat=True": (True, 1),
    "gradient_accumulation_steps=4": (False, 4),
}
PROGRAM = """
import sys, time
import numpy as np, keras
from benchmarks.environment import peak_memory_bytes
from keras_deit.models import DeiTImageClassifier
preset, batch_size, remat, steps, jit, updates = sys.argv[1], *map(int, sys.argv[2:])
model = DeiTImageClassifier.from_preset(
    preset, load_weights=False, preprocessor=None, remat=bool(remat)
)
options = {"gradient_accumulation_steps": steps} if steps > 1 else {}
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.AdamW(**options), loss, jit_compile=bool(jit))
images = np.zeros((batch_size // steps, *model.input.shape[1:]), "float32")
before, seconds = peak_memory_bytes(), []
for _ in range(1 + updates):
    started = time.perf_counter()
    for _ in range(steps):
        model.train_on_batch(images, np.zeros(len(images), "int32"))
    seconds.append(time.perf_counter() - started)
print("@", peak_memory_bytes() - before, np.median(seconds[1:]))
"""


def main(_):
    print(
        "| training | MiB | of as it is | ms an update | of as it is |\n| --- | --- | --- | --- | "
        "--- |"
    )
    first = None
    for name, (remat, steps) in WAYS.items():
        settings = (
            FLAGS.preset,
            FLAGS.batch_size,
            int(remat),
            steps,
            int(FLAGS.jit),
            FLAGS.updates,
        )
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *map(str, settings)],
            env={**os.environ, "KERAS_BACKEND": FLAGS.backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("@ ")]
        if not lines:
            sys.exit(f"{name}: {done.stderr}")
        found = np.array(lines[-1], float)
        first = found if first is None else first
        (memory, seconds), (memory_share, time_share) = found, found / first
        print(
            f"| {name} | {memory / 2**20:.0f} | {memory_share:.2f} | {seconds * 1000:.0f} | "
            f"{time_share:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
