"""Measures what fine-tuning with fewer tokens gains: accuracy against operations, on digits.

    KERAS_BACKEND=tensorflow python -m benchmarks.token_reduction

The digits model merges or selects tokens at several strengths, and answers scikit-learn's last 360
digits, which no model here has seen:

    shipped    with the weights that ship
    control    with the shipped weights fine-tuned without reduction
    trained    with the shipped weights fine-tuned with this reduction

All fine-tunings have the same budget, and for each seed the same augmented images in the same
order. Their settings were not tuned.

Writes the table of docs/token_merging.md; `python tools/docs_figures.py --only token_reduction`
draws its picture. docs/token_reduction.json keeps each result, so an interrupted run resumes. It
takes half an hour on two cores that do other work, too.
"""

import functools
import json
import pathlib

import keras
import numpy as np
from absl import app, flags

from benchmarks import digits
from benchmarks.flops import forward_flops
from keras_deit.atomic import atomic_file
from keras_deit.models import DeiTImageClassifier
from tools.markdown_section import write_section

FLAGS = flags.FLAGS
flags.DEFINE_integer("seeds", 3, "Number of fine-tunings of each kind.", lower_bound=2)
flags.DEFINE_integer("epochs", 4, "Epochs of each fine-tuning.", lower_bound=1)
flags.DEFINE_float("learning_rate", 5e-4, "Highest learning rate.", 0.0)
flags.DEFINE_string("output", "docs/token_reduction.json", "JSON file of the results.")
flags.DEFINE_string("page", "docs/token_merging.md", "Page with the table.")
BATCH_SIZE = 64
STRENGTHS = {
    "num_merged_tokens": (8, 16, 24, 32),
    "keep_rate": (0.7, 0.5, 0.3, 0.1),
}


@functools.cache
def augmented(seed):
    """(images, labels) of all epochs, images converted, in the order of training."""
    images, labels = digits.training_digits()
    images = keras.ops.convert_to_numpy(Subject().converter(images))
    options = {
        "fill_mode": "constant",
        "fill_value": float(images.min()),
        "data_format": "channels_last",
    }
    # As in tools/train_digits.py
    layers = (
        keras.layers.RandomRotation(0.04, seed=seed, **options),
        keras.layers.RandomShear(0.15, 0.15, seed=seed, **options),
        keras.layers.RandomZoom((-0.15, 0.15), (-0.15, 0.15), seed=seed, **options),
        keras.layers.RandomTranslation(0.1, 0.1, seed=seed, **options),
    )
    rng = np.random.default_rng(seed)
    steps = len(images) // BATCH_SIZE
    found = []
    for _ in range(FLAGS.epochs):
        rows = rng.permutation(len(images))[: steps * BATCH_SIZE]
        epoch = images[rows]
        for layer in layers:
            epoch = layer(epoch, training=True)
        found.append((keras.ops.convert_to_numpy(epoch), labels[rows]))
    images, labels = zip(*found)
    return np.concatenate(images), np.concatenate(labels)


class Subject:
    """The digits model with a reduction. Built once, because tracing takes longer than training."""

    def __init__(self, **reduction):
        self.title = title(reduction)
        self.model = DeiTImageClassifier.from_preset(digits.PRESET, **reduction)
        self.converter, self.model.preprocessor = self.model.preprocessor, None
        self.shipped = self.model.get_weights()
        self.flops = forward_flops(self.model.backbone.get_config(), 10, 2)

    def accuracy(self, weights):
        self.model.set_weights(weights)
        images, labels = digits.test_digits()
        found = self.model.predict(self.converter(images), batch_size=360, verbose=0)
        return float((found.argmax(axis=-1) == labels).mean())

    def fine_tuned(self, seed):
        """The weights after fine-tuning from the weights that ship."""
        keras.utils.set_random_seed(seed)
        images, labels = augmented(seed)
        if not self.model.compiled:
            steps = len(images) // BATCH_SIZE
            schedule = keras.optimizers.schedules.CosineDecay(
                0.0,
                steps - steps // 10,
                warmup_target=FLAGS.learning_rate,
                warmup_steps=steps // 10,
            )
            self.model.compile(
                keras.optimizers.AdamW(schedule, weight_decay=0.05, clipnorm=1.0),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                jit_compile=False,
            )
        self.model.set_weights(self.shipped)
        for variable in self.model.optimizer.variables:  # the moments and the number of steps
            variable.assign(keras.ops.zeros_like(variable))
        # One pass, because the images of all epochs are there.
        self.model.fit(images, labels, BATCH_SIZE, epochs=1, shuffle=False, verbose=0)
        return self.model.get_weights()

    def accuracy_of(self, fine_tuned, seed):
        return self.accuracy(fine_tuned(seed))


class Results(dict):
    """{name: value}, each written to the file when it is there."""

    def __init__(self, file):
        super().__init__(json.loads(file.read_text(encoding="utf-8")) if file.exists() else {})
        self.file = file

    def once(self, name, compute, *arguments):
        if name not in self:
            self[name] = compute(*arguments)
            print(name, self[name], flush=True)
            with atomic_file(self.file) as file:
                file.write_text(json.dumps(self, indent=1) + "\n", encoding="utf-8")


def main(_):
    results = Results(pathlib.Path(FLAGS.output))
    reductions = [
        {name: strength} for name, strengths in STRENGTHS.items() for strength in strengths
    ]
    settings = {"epochs": FLAGS.epochs, "learning_rate": FLAGS.learning_rate}
    results.once("settings", dict, settings)
    if results["settings"] != settings:
        raise app.UsageError(
            f"{FLAGS.output} has results of other settings. Use another --output, or the same "
            f"settings. Received: {settings}, and in the file {results['settings']}"
        )
    full = Subject()
    control = functools.cache(full.fine_tuned)
    for reduction in ({}, *reductions):
        subject = Subject(**reduction)
        results.once(f"flops {subject.title}", float, subject.flops / full.flops)
        results.once(f"shipped {subject.title}", subject.accuracy, subject.shipped)
        for seed in range(FLAGS.seeds):
            name = f"{subject.title} seed {seed}"
            results.once(f"control {name}", subject.accuracy_of, control, seed)
            if reduction:
                results.once(f"trained {name}", subject.accuracy_of, subject.fine_tuned, seed)
    text = table(results, reductions)
    write_section(pathlib.Path(FLAGS.page), "token_reduction", text)
    print(text)


def table(results, reductions):
    lines = [
        "| reduction | operations | as shipped | fine-tuned without it | fine-tuned with it |",
        "| --- | --- | --- | --- | --- |",
    ]
    for reduction in ({}, *reductions):
        name = title(reduction)
        arguments = [f"`{argument}={value}`" for argument, value in reduction.items()]
        cells = [
            *(arguments or ["none"]),
            f"{results[f'flops {name}']:.0%}",
            f"{results[f'shipped {name}']:.1%}",
            spread(results, f"control {name}"),
            spread(results, f"trained {name}") if reduction else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(results, name):
    """The mean of all seeds, and their range."""
    found = [results[f"{name} seed {seed}"] for seed in range(FLAGS.seeds)]
    return f"{np.mean(found):.1%} ({min(found):.1%} to {max(found):.1%})"


def title(reduction):
    return " ".join(f"{name} {value}" for name, value in reduction.items()) or "none"


if __name__ == "__main__":
    app.run(main)
