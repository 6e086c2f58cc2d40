"""Measures how long a package takes to import and to load a classifier, in a new process.

    python -m benchmarks.startup --preset deit_base_distilled_patch16_224

All packages load the same random weights from a folder. KerasHub reads transformers' files, as for
its `hf://` presets; the others read their own.
"""

import subprocess
import sys
import tempfile

import numpy as np
from absl import app, flags

from benchmarks.environment import worker_environment
from benchmarks.measure import make_case

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "modules", ["keras", "keras_deit", "keras_hub", "timm", "transformers"], "Modules to import."
)
flags.DEFINE_string(
    "preset",
    "deit_small_distilled_patch16_224",
    "Name of a published distilled preset: KerasHub has no others.",
)
flags.DEFINE_enum("backend", "tensorflow", ["tensorflow", "jax", "torch"], "Keras backend.")
flags.DEFINE_integer("rounds", 5, "Number of turns.", lower_bound=1)

LOADS = {
    "keras_deit": "keras_deit.models.DeiTImageClassifier.from_preset(f'{folder}/keras_deit')",
    "keras_hub": "keras_hub.models.DeiTImageClassifier.from_preset(f'{folder}/transformers', "
    "preprocessor=None)",
    "timm": "timm.create_model(preset, checkpoint_path=f'{folder}/timm.safetensors')",
    "transformers": "transformers.DeiTForImageClassificationWithTeacher.from_pretrained("
    "f'{folder}/transformers')",
}
PROGRAM = """
import sys, time
preset, folder = sys.argv[1:]
started = time.perf_counter()
import {module}
imported = time.perf_counter()
model = {load}
loaded = time.perf_counter()
from benchmarks.environment import peak_memory_bytes
print("@", imported - started, loaded - imported, (peak_memory_bytes() or 0) / 2**20)
"""


def start(module, folder):
    """Seconds to import, seconds to load, and peak memory in MiB; `None` if that fails."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            PROGRAM.format(module=module, load=LOADS.get(module)),
            FLAGS.preset,
            folder,
        ],
        env=worker_environment(FLAGS.backend),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("@ ")]
    return [float(value) for value in lines[-1]] if lines else None


def main(_):
    found = {module: [] for module in FLAGS.modules}
    with tempfile.TemporaryDirectory() as folder:
        make_case(folder, FLAGS.preset, FLAGS.backend)
        for _ in range(FLAGS.rounds):
            for module, values in found.items():
                values.append(start(module, folder))
    print("| module | import, seconds | load, seconds | peak MiB |\n| --- | --- | --- | --- |")
    for module, values in found.items():
        if None in values:
            print(f"| {module} | cannot be imported or cannot load {FLAGS.preset} | | |")
        else:
            imported, loaded, memory = np.median(values, axis=0)
            print(
                f"| {module} | {imported:.1f} | {f'{loaded:.1f}' if module in LOADS else ''} | "
                f"{memory:.0f} |"
            )


if __name__ == "__main__":
    app.run(main)
