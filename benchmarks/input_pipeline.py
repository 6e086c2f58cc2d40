"""Measures what it costs a CPU to turn photographs into training batches.

    KERAS_BACKEND=jax python -m benchmarks.input_pipeline
    KERAS_BACKEND=jax python -m benchmarks.input_pipeline --fit

The photographs are the two JPEG files of scikit-learn, 640 x 427 pixels. Without `--fit`: images
per second of processor time, so that other work on the machine matters little. The pipelines take
turns, and each line is one of

    decode      read and decode the file
    crop        also a random resized crop to `--image_size`, a random flip, and normalization
    deit        also the rest of DeiT's augmentation: RandAugment, erasing, MixUp or CutMix

`tf.data` is the pipeline of this package. `PyDataset` and `grain` share one function of Pillow and
NumPy. docs/data.md says how to use each.

With `--fit`: the share of the training that its input takes. `fit` runs on each pipeline and, for
comparison, on one batch that is ready in memory.
"""

import functools
import itertools
import pathlib
import time
import types

import keras
import numpy as np
from absl import app, flags
from PIL import Image
from sklearn.datasets import load_sample_images

from keras_deit.layers import DeiTImageConverter
from keras_deit.models import DeiTImageClassifier
from keras_deit.training import RECIPES, Augmentation

FLAGS = flags.FLAGS
flags.DEFINE_integer("batch_size", 32, "Number of images per batch.", lower_bound=2)
flags.DEFINE_integer("image_size", 224, "Height and width of the images in pixels.", lower_bound=16)
flags.DEFINE_integer("batches", 12, "Number of batches per turn.", lower_bound=1)
flags.DEFINE_integer("rounds", 5, "Number of turns.", lower_bound=1)
flags.DEFINE_bool("fit", False, "Measure the share of a training instead.")
flags.DEFINE_string("preset", "deit_tiny_patch16_224", "Architecture to train with --fit.")
flags.DEFINE_string("dtype_policy", "float32", "Keras dtype policy of --fit.")
NUM_CLASSES = 1000
CROP = Augmentation()
AUGMENTATIONS = {"crop": CROP, "deit": RECIPES["deit"].augmentation}


def files():
    return [pathlib.Path(name) for name in load_sample_images().filenames]


def read(path):
    """The photograph as an RGB image of Pillow."""
    with Image.open(path) as image:
        return image.convert("RGB")


def augment(image, converter, generator):
    """A random box of 8 to 100% of the area, resized, flipped in half of all cases, normalized."""
    width, height = image.size
    area = width * height * generator.uniform(0.08, 1)
    ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
    box_width, box_height = min(width, np.sqrt(area * ratio)), min(height, np.sqrt(area / ratio))
    left, top = generator.uniform(0, width - box_width), generator.uniform(0, height - box_height)
    box = (left, top, left + box_width, top + box_height)
    image = image.resize(converter.image_size[::-1], Image.Resampling.BICUBIC, box)
    if generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(image, "float32") / 255
    return (pixels - np.float32(converter.mean)) / np.float32(converter.std)


LABEL = np.eye(NUM_CLASSES, dtype="float32")[1]


class Photographs(keras.utils.PyDataset):
    def __init__(self, work, converter):
        super().__init__(workers=2)
        self.work, self.converter = work, converter
        self.files = files()

    @property
    def num_batches(self):
        return None  # endless

    def __getitem__(self, index):
        generator = np.random.default_rng(index)
        numbers = range(index * FLAGS.batch_size, (index + 1) * FLAGS.batch_size)
        images = [read(self.files[number % len(self.files)]) for number in numbers]
        if self.work == "decode":
            return np.stack([np.asarray(image) for image in images])
        images = np.stack([augment(image, self.converter, generator) for image in images])
        return images, np.stack([LABEL] * len(images))


def grain(work, converter):
    import grain

    dataset = grain.MapDataset.source(files()).seed(0).repeat().map(read)
    if work == "decode":
        dataset = dataset.map(np.asarray)
    else:
        dataset = dataset.random_map(
            lambda image, generator: (augment(image, converter, generator), LABEL)
        )
    # Its default would read 500 batches ahead.
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    return dataset.batch(FLAGS.batch_size).to_iter_dataset(options)


def tf_data(work, converter):
    import tensorflow as tf

    from keras_deit.training import batches, image_reader

    paths = [str(path) for path in files()]
    elements = tf.data.Dataset.from_tensor_slices(([0, 1], paths, [1, 1])).repeat(1_000_000)
    read = image_reader.image_reader(types.SimpleNamespace(are_files=True))
    if work == "decode":
        decoded = elements.map(lambda *element: read(element)[0], tf.data.AUTOTUNE)
        return decoded.batch(FLAGS.batch_size).prefetch(tf.data.AUTOTUNE)
    return batches.training_batches(
        elements, AUGMENTATIONS[work], converter, NUM_CLASSES, FLAGS.batch_size, 8, read
    )


AHEAD = 6  # batches to skip, more than any pipeline here buffers
PIPELINES = {"tf.data": tf_data, "PyDataset": Photographs, "grain": grain}
# NumPy and Pillow have no RandAugment.
LINES = [(work, name) for work in ("decode", "crop") for name in PIPELINES] + [("deit", "tf.data")]


def images_per_core_second(work, name, converter):
    """Images per second of processor time, all threads together."""
    data = PIPELINES[name](work, converter)
    batches = (data[index] for index in itertools.count()) if name == "PyDataset" else iter(data)
    # First those that the pipeline prepares ahead, so that as many are ahead at the end.
    for _ in range(AHEAD):
        next(batches)
    started = time.process_time()
    for _ in range(FLAGS.batches):
        next(batches)
    return FLAGS.batches * FLAGS.batch_size / (time.process_time() - started)


def pipelines(converter):
    rates = {line: [] for line in LINES}
    for _ in range(FLAGS.rounds):
        for work, name in LINES:
            rates[work, name].append(images_per_core_second(work, name, converter))
    lines = [f"| work | {' | '.join(PIPELINES)} |", "| --- | --- | --- | --- |"]
    for work in ("decode", *AUGMENTATIONS):
        cells = [_rate(rates.get((work, name))) for name in PIPELINES]
        lines.append(f"| {work} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rate(values):
    """The median, and the lowest and highest."""
    return f"{np.median(values):.0f} ({min(values):.0f} to {max(values):.0f})" if values else ""


def shares(converter):
    """The share of each pipeline in the processor time of `fit`."""
    model = DeiTImageClassifier.from_preset(
        FLAGS.preset,
        load_weights=False,
        preprocessor=None,
        num_classes=NUM_CLASSES,
        image_shape=(FLAGS.image_size, FLAGS.image_size, 3),
        dtype=FLAGS.dtype_policy,
        data_format="channels_last",
    )
    model.compile("adamw", keras.losses.CategoricalCrossentropy(from_logits=True))
    batch = Photographs("crop", converter)[0]
    ways = {"ready": lambda: itertools.repeat(batch)}
    ways |= {
        f"{work}, {name}": functools.partial(PIPELINES[name], work, converter)
        for work, name in LINES
        if work != "decode"
    }
    seconds = {way: [] for way in ways}
    for turn in range(FLAGS.rounds + 1):
        for way, make in ways.items():
            data = make()
            data = (one for one in data) if way == "ready" else data
            started = time.process_time()
            model.fit(data, steps_per_epoch=FLAGS.batches, shuffle=False, verbose=0)
            if turn:  # the first turn compiles
                seconds[way].append(time.process_time() - started)
    ready = np.array(seconds.pop("ready"))
    images = FLAGS.batches * FLAGS.batch_size
    lines = [
        f"| input | share on {keras.backend.backend()} | ms of processor time for an image |",
        "| --- | --- | --- |",
        f"| from memory | | {1e3 * np.median(ready) / images:.0f} |",
    ]
    for way, values in seconds.items():
        share = np.median(1 - ready / np.array(values))
        lines.append(f"| {way} | {share:.0%} | {1e3 * np.median(values) / images:.0f} |")
    return "\n".join(lines)


def main(_):
    converter = DeiTImageConverter(FLAGS.image_size, data_format="channels_last")
    print((shares if FLAGS.fit else pipelines)(converter))


if __name__ == "__main__":
    app.run(main)
