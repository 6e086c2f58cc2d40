"""Does distillation help? Trains small students on few of scikit-learn's digits, alone and taught,
and writes the table of docs/distil.md.

    pip install ".[tensorflow,examples]" && python tools/distillation_table.py

600 digits to learn from, 1197 to be scored on, 5 seeds, 60 epochs each: half an hour on two cores.
For every seed a convolutional teacher learns the same 600 and teaches two students of four; all see
the same images in the same order, augmented alike. Nothing was chosen by the
1197: the learning rate is that of `examples/train_digits.py`, soft distillation the paper's. Each
    seed's figures are kept in docs/distillation.json,
and a run that was stopped goes on from there.
"""

import json
import os
import pathlib
import statistics

# Less of TensorFlow's log among what this prints
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from sklearn.datasets import load_digits

from keras_deit.models import DeiTBackbone, DeiTDistiller, DeiTImageClassifier

FLAGS = flags.FLAGS
flags.DEFINE_integer("seeds", 5, "How many trainings of each kind.", lower_bound=2)
flags.DEFINE_integer("epochs", 60, "Of each student, and of each teacher.", lower_bound=1)
flags.DEFINE_integer("training_images", 600, "The others are for the score.", lower_bound=64)
flags.DEFINE_string("output", "docs/distillation.json", "Results.")
flags.DEFINE_string("page", "docs/distil.md", "Page that the table is written into.")
BATCH_SIZE = 50
ROWS = {
    "teacher": "teacher, convolutional",
    "alone": "student alone, one token",
    "two_tokens": "student alone, both tokens on the labels",
    "hard": "hard distillation, alpha 0.5",
    "soft": "soft distillation, alpha 0.1, temperature 3",
}
START, END = "<!-- distillation -->", "<!-- /distillation -->"


def load():
    """((images (N, 16, 16, 1), about -1 to 1; digits) to learn from; the same to be scored on)."""
    digits = load_digits()
    images = tf.image.resize(digits.images[..., None] / 8 - 1, (16, 16), "bicubic").numpy()
    count = FLAGS.training_images
    return (images[:count], digits.target[:count]), (images[count:], digits.target[count:])


def augmented(images, labels, seed):
    """Each epoch another order and other distortions, the same for all that train with this
    seed.
    """
    options = {"fill_mode": "constant", "fill_value": -1.0, "data_format": "channels_last"}
    layers = (
        keras.layers.RandomRotation(0.04, seed=seed, **options),
        keras.layers.RandomZoom((-0.15, 0.15), (-0.15, 0.15), seed=seed, **options),
        keras.layers.RandomTranslation(0.1, 0.1, seed=seed, **options),
    )

    def augment(images, labels):
        for layer in layers:
            images = layer(images, training=True)
        return images, labels

    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=seed)
    return dataset.batch(BATCH_SIZE, drop_remainder=True).map(augment).prefetch(2)


def train(model, training, seed):
    steps = FLAGS.epochs * (len(training[0]) // BATCH_SIZE)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - steps // 10, warmup_target=2e-3, warmup_steps=steps // 10
    )
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=0.05, clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(augmented(*training, seed), epochs=FLAGS.epochs, shuffle=False, verbose=0)


def build_teacher():
    layers = [keras.Input((16, 16, 1))]
    for filters in (32, 64, 128):
        layers += [
            keras.layers.Conv2D(filters, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("relu"),
            keras.layers.MaxPooling2D(),
        ]
    return keras.Sequential(
        [*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    )


def build_student(distilled):
    backbone = DeiTBackbone(
        (16, 16, 1), 4, 4, 4, 64, 256, use_distillation_token=distilled, drop_path_rate=0.1
    )
    return DeiTImageClassifier(backbone, 10)


def accuracy(model, data):
    return float((model.predict(data[0], verbose=0).argmax(-1) == data[1]).mean())


def agreement(teacher, training, seed):
    """How often the teacher's hard answer on an image to learn from is its label: where it is, the
    answer says nothing new.
    """
    batches = list(augmented(*training, seed).as_numpy_iterator())
    same = [teacher.predict_on_batch(images).argmax(-1) == labels for images, labels in batches]
    return float(np.concatenate(same).mean())


def run(seed, training, test):
    """The accuracy of each row on the test images, and the teacher's agreement with the labels."""
    keras.utils.set_random_seed(seed)
    teacher = build_teacher()
    train(teacher, training, seed)
    found = {"teacher": accuracy(teacher, test), "agreement": agreement(teacher, training, seed)}
    students = {
        "alone": lambda: build_student(False),
        "two_tokens": lambda: build_student(True),
        "hard": lambda: DeiTDistiller(build_student(True), teacher),
        "soft": lambda: DeiTDistiller(
            build_student(True), teacher, "soft", alpha=0.1, temperature=3.0
        ),
    }
    for name, build in students.items():
        keras.utils.set_random_seed(seed)
        model = build()
        train(model, training, seed)
        found[name] = accuracy(getattr(model, "student", model), test)
    return found


def table(results):
    """Mean, spread, and how often a student is better than the one alone with the same seed."""
    lines = [
        "| | accuracy, mean | standard deviation | better than alone |",
        "| --- | --- | --- | --- |",
    ]
    for name, title in ROWS.items():
        values = [result[name] for result in results]
        wins = sum(result[name] > result["alone"] for result in results)
        better = "" if name in ("teacher", "alone") else f"{wins} of {len(results)}"
        lines.append(
            f"| {title} | {statistics.mean(values):.1%} | {statistics.stdev(values):.1%} | "
            f"{better} |"
        )
    agreed = statistics.mean(result["agreement"] for result in results)
    return (
        "\n".join(lines)
        + f"\n\nOn the images to learn from, augmented, the teacher says what the label says in {agreed:.1%} of cases."
    )


def main(_):
    output = pathlib.Path(FLAGS.output)
    settings = {name: FLAGS[name].value for name in ("epochs", "training_images")}
    content = (
        json.loads(output.read_text()) if output.exists() else {"settings": settings, "results": []}
    )
    if content["settings"] != settings:
        raise app.UsageError(
            f"{output} has other settings, {content['settings']}. Give another --output, or remove "
            "it."
        )
    training, test = load()
    for seed in range(len(content["results"]), FLAGS.seeds):
        content["results"].append(
            {name: round(value, 4) for name, value in run(seed, training, test).items()}
        )
        print(f"seed {seed}: {content['results'][-1]}", flush=True)
        output.write_text(json.dumps(content, indent=1) + "\n")
    page = pathlib.Path(FLAGS.page)
    before, rest = page.read_text().split(START)
    _, after = rest.split(END)
    page.write_text(f"{before}{START}\n\n{table(content['results'])}\n\n{END}{after}")
    print(table(content["results"]))


if __name__ == "__main__":
    app.run(main)
