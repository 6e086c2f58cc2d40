"""Does memory grow in long runs? Loads, predicts and trains for a while, and looks.

    python tools/memory_over_time.py
    KERAS_BACKEND=jax python tools/memory_over_time.py
    KERAS_BACKEND=torch python tools/memory_over_time.py

Each takes some minutes on two cores, updates docs/long_runs.json, and writes the table of
docs/reliability.md. The model is the one that ships inside keras_deit. Memory is the resident
memory of the process after `gc.collect()`, at 20 points of each run; the first fifth of a run is
warm-up. It is read from /proc, so this program needs Linux.
"""

import collections
import gc
import json
import os
import pathlib
import tempfile

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags
from markdown_section import write_section

from keras_deit.atomic import atomic_file
from keras_deit.models import DeiTImageClassifier
from keras_deit.training import TrainingCheckpoint

FLAGS = flags.FLAGS
flags.DEFINE_integer("loads", 300, "Number of `from_preset`.", lower_bound=20)
flags.DEFINE_integer("predictions", 2000, "Number of `predict`.", lower_bound=20)
flags.DEFINE_integer("epochs", 50, "Number of epochs of one `fit`.", lower_bound=20)
flags.DEFINE_list("only", None, "Runs to measure, such as load,fit. Default: all.")
flags.DEFINE_string("output", "docs/long_runs.json", "JSON file to update.")
flags.DEFINE_string("page", "docs/reliability.md", "Page with the table, or empty for none.")

PRESET = "deit_nano_distilled_patch4_32_digits"
POINTS = 20
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
Run = collections.namedtuple("Run", "title flag function")


def load(count, note):
    for _ in range(count):
        DeiTImageClassifier.from_preset(PRESET)
        note()


def load_and_clear(count, note):
    for _ in range(count):
        DeiTImageClassifier.from_preset(PRESET)
        keras.utils.clear_session()
        note()


def predict(count, note):
    classifier, (images, _) = DeiTImageClassifier.from_preset(PRESET), data(8)
    for _ in range(count):
        classifier.predict(images, verbose=0)
        note()


def predict_with_keras(count, note):
    """Nothing of ours, to compare with: a layer of Keras, fed by a `PyDataset` as `predict` is."""
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    for _ in range(count):
        model.predict(OneBatch(), verbose=0)
        note()


def fit(count, note):
    classifier = DeiTImageClassifier.from_preset(PRESET)
    classifier.compile()
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [
            TrainingCheckpoint(folder),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: note()),
        ]
        classifier.fit(*data(256), epochs=count, verbose=0, callbacks=callbacks)


RUNS = {
    "load": Run("`from_preset`", "loads", load),
    "load_and_clear": Run("`from_preset` and `clear_session`", "loads", load_and_clear),
    "predict": Run("`predict`", "predictions", predict),
    "predict_with_keras": Run("`predict` of one Keras layer", "predictions", predict_with_keras),
    "fit": Run("epochs of `fit`, with checkpoints", "epochs", fit),
}


class OneBatch(keras.utils.PyDataset):
    num_batches = 1

    def __init__(self):
        super().__init__()

    def __getitem__(self, index):
        return (data(8)[0],)


def data(count):
    """(images, labels) of random digits."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 8, 8, 1), "uint8"), np.arange(count) % 10


def measure(function, count):
    """[(steps, resident MiB)] of a function that calls its second argument after every step."""
    points, steps = [], 0

    def note():
        nonlocal steps
        steps += 1
        if steps % (count // POINTS) == 0:
            gc.collect()
            points.append((steps, round(resident_mib(), 2)))

    function(count, note)
    return points


def resident_mib():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def after_warm_up(points):
    return points[len(points) // 5 :]


def growth(points):
    """KiB per step after the warm-up: the slope of a straight line through the points."""
    steps, memory = zip(*after_warm_up(points))
    return 1024 * float(np.polyfit(steps, memory, 1)[0])


def table(results):
    """The slope of each run on each backend, and from how much to how much memory that led."""
    columns = ["run", *(title for backend, title in BACKENDS.items() if backend in results)]
    lines = [columns, ["---"] * len(columns)]
    for name, run in RUNS.items():
        cells = [_cell(results[backend].get(name)) for backend in BACKENDS if backend in results]
        counts = {found[name][-1][0] for found in results.values() if name in found}
        lines.append([f"{' or '.join(map(str, sorted(counts)))} {run.title}", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(points):
    if points is None:
        return "not measured"
    (_, first), *_, (_, last) = after_warm_up(points)
    return f"{growth(points):.1f} KiB each ({first:.0f} to {last:.0f} MiB)"


def main(_):
    output = pathlib.Path(FLAGS.output)
    results = json.loads(output.read_text()) if output.exists() else {}
    found = results.setdefault(keras.backend.backend(), {})
    for name in FLAGS.only or RUNS:
        run = RUNS[name]
        found[name] = measure(run.function, FLAGS[run.flag].value)
        print(f"{name}: {_cell(found[name])}", flush=True)
        with atomic_file(output) as file:
            file.write_text(json.dumps(results, indent=1) + "\n")
    if FLAGS.page:
        write_section(pathlib.Path(FLAGS.page), "long_runs", table(results))


if __name__ == "__main__":
    app.run(main)
