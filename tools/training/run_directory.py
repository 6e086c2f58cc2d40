"""What a training writes: settings, checkpoints, the best model, logs and curves."""

import csv
import json
import math

import keras
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from keras_deit.atomic import atomic_file

# Flags that may change when a training resumes: the results stay the same.
FREE_SETTINGS = ("output", "distribution", "jit")


def write_settings(directory, settings):
    with atomic_file(directory / "settings.json") as file:
        file.write_text(json.dumps(_kept(settings), indent=4))


def check_settings(directory, settings, defaults):
    """Refuses to resume a training with other settings.

    A flag that did not exist when the training started had its default.
    """
    path = directory / "settings.json"
    if not (directory / "checkpoints").exists() or not path.exists():
        return
    before = json.loads(path.read_text())
    changed = [
        f"--{name} was {before[name]!r} and is {value!r}"
        for name, value in _kept(settings).items()
        if before.setdefault(name, defaults[name]) != value
    ]
    if changed:
        raise ValueError(
            f"--output {directory} contains a training with other settings. Use the same settings "
            f"to resume it, or another --output. Received: {'; '.join(changed)}"
        )


def _kept(settings):
    return {name: value for name, value in settings.items() if name not in FREE_SETTINGS}


def callbacks(output, model, best_accuracy, checkpoint, unreadable):
    log = output / "log.csv"
    found = [StopAtUnreadable(unreadable), BestPreset(model, output, best_accuracy)]
    if model.has_average:
        # After `BestPreset`, which saves while the averages are still swapped in.
        found.append(keras.callbacks.SwapEMAWeights())
    return [
        *found,
        EpochLog(log, append=True),
        keras.callbacks.TensorBoard(output / "tensorboard"),
        keras.callbacks.LambdaCallback(
            on_epoch_end=lambda *_: plot_curves(log, output / "curves.png")
        ),
        checkpoint,
    ]


def best_accuracy(directory):
    """Validation accuracy of the best model so far, or -1."""
    path = directory / "best.json"
    return json.loads(path.read_text())["accuracy"] if path.exists() else -1.0


class UnreadableImage(ValueError):
    """An image that could be read before the training, and cannot be read any more."""


class StopAtUnreadable(keras.callbacks.Callback):
    """Ends the training after the batch of an image that cannot be read.

    Args:
        unreadable: dict, see `make_batches`. Raising in the `tf.data` pipeline instead would end
            the process with two pages of TensorFlow's traceback.
    """

    def __init__(self, unreadable):
        super().__init__()
        self.unreadable = unreadable

    def on_train_batch_end(self, batch, logs=None):
        for reason in self.unreadable.values():
            raise UnreadableImage(
                f"{reason} Then start again with the same flags to resume after the last finished "
                "epoch."
            )

    def on_test_batch_end(self, batch, logs=None):
        self.on_train_batch_end(batch)


class BestPreset(keras.callbacks.Callback):
    """Saves the classifier as a preset whenever its validation accuracy improves."""

    def __init__(self, model, output, accuracy):
        super().__init__()
        self.classifier, self.converter = model.classifier, model.converter
        self.output, self.accuracy = output, accuracy
        self.has_adapters = model.has_adapters

    def on_test_end(self, logs=None):
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                "The loss is not finite. Start again with a lower --learning_rate and another "
                "--output."
            )
        if logs["accuracy"] <= self.accuracy:
            return
        self.accuracy = float(logs["accuracy"])
        self.classifier.preprocessor = self.converter
        self.classifier.save_to_preset(self.output / "best")
        self.classifier.preprocessor = None
        if self.has_adapters:
            self.classifier.save_lora_weights(self.output / "best_lora.safetensors")
        with atomic_file(self.output / "best.json") as file:
            file.write_text(json.dumps({"accuracy": self.accuracy}))


class EpochLog(keras.callbacks.CSVLogger):
    """Counts epochs from 1, like the progress bar and the curves."""

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch + 1, logs)

    def close(self):
        """For a training that ends with an error."""
        if self.csv_file is not None:
            self.csv_file.close()


def plot_curves(log, picture):
    """Draws loss and accuracy by epoch. Of an epoch that ran twice, the last run counts."""
    with open(log, newline="") as stream:
        rows = list({row["epoch"]: row for row in csv.DictReader(stream)}.values())
    figure = Figure((9, 3.5), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        for name in (metric, f"val_{metric}"):
            epochs, values = zip(*((int(row["epoch"]), float(row[name])) for row in rows))
            axes.plot(epochs, values, label=name, marker=".")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=150)
