"""Trains a DeiT on your images: from scratch, from a published checkpoint, or taught by another
model.

    pip install ".[train]"
    python examples/train.py --data photos --preset deit_tiny_distilled_patch16_224 --output run
    python examples/train.py --data photos --preset deit_tiny_distilled_patch16_224 --output run
    --noload_weights --recipe deit python examples/train.py --data photos --preset
    deit_tiny_distilled_patch16_224 --output run --teacher deit3_base_patch16_224

Without `--recipe` the first takes the one for new classes, whose batch and epochs fit the number of
images. `photos` has the folders `train` and `val`, each with a folder of images for every class;
`--data tfds:NAME` reads a set of TensorFlow Datasets. Killed at any moment and started again with
the same flags, it goes on from its last epoch, and ends with the weights that it would have had:
the same bits on a processor. In `--output`: `best`, a preset of the epoch with the best validation
accuracy; `curves.png`, `tensorboard`, and `log.csv`, in which an epoch that was run again is there
twice.

Several devices: `--distribution data_parallel` or `model_parallel` with `KERAS_BACKEND=jax`,
`mirrored` with TensorFlow. Several machines: JAX, and on each the variables
`KERAS_DISTRIBUTION_JOB_ADDRESSES`, `_NUM_PROCESSES` and `_PROCESS_ID` of
`keras.distribution.initialize`. `--batch_size` is of all together, and `--output` a folder that all
of them see.
"""

import contextlib
import csv
import dataclasses
import json
import math
import os
import pathlib
import shutil
import sys
import tempfile
import traceback

# Less of TensorFlow's log among what this prints
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags, logging
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from keras_deit.models import DeiTBackbone, DeiTDistiller, DeiTImageClassifier
from keras_deit.presets import find_preset, imagenet_synsets
from keras_deit.training import RECIPES, TrainingCheckpoint, batches
from keras_deit.training.image_folder import ImageFolder, decoder, reader

FLAGS = flags.FLAGS
flags.DEFINE_string("data", None, "Folder with train/ and val/, or tfds:NAME.", required=True)
flags.DEFINE_string("preset", None, "Name, hf:// address or folder of the model.", required=True)
flags.DEFINE_string("output", None, "Folder of all that is written.", required=True)
flags.DEFINE_bool("load_weights", True, "Start from the preset's weights.")
flags.DEFINE_string(
    "teacher", None, "Preset, or .keras file that takes images from 0 to 255, to distil."
)
flags.DEFINE_enum("distillation_type", "hard", ["hard", "soft"], "How the teacher is listened to.")
flags.DEFINE_float("alpha", 0.5, "Share of the teacher in the loss.", 0.0, 1.0)
flags.DEFINE_float("temperature", 1.0, "Of soft distillation.", 1e-3)
flags.DEFINE_enum(
    "recipe",
    None,
    list(RECIPES),
    "Default: new_classes from the weights of a preset that has other classes, "
    "deit3_base_fine_tune_224 if it has the same; deit from none.",
)
flags.DEFINE_integer("epochs", None, "Default: the recipe's, for so many images.", 1)
flags.DEFINE_integer(
    "batch_size",
    None,
    "Images in a step, over all devices. Default: the recipe's, or fewer for few images.",
    1,
)
flags.DEFINE_integer("image_size", None, "Pixels of a side. Default: the preset's.", 1)
flags.DEFINE_string("dtype_policy", "float32", "Such as mixed_bfloat16.")
flags.DEFINE_enum("jit", "auto", ["auto", "on", "off"], "Whether XLA compiles the step.")
flags.DEFINE_bool("ema", True, "Validate and save the moving average of the weights.")
flags.DEFINE_float(
    "ema_momentum",
    None,
    "Default: the recipe's, or less in a short training: a tenth of it.",
    0.0,
    1.0,
)
flags.DEFINE_float(
    "learning_rate", None, "At the recipe's batch size. Default: the recipe's.", 1e-12
)
flags.DEFINE_integer(
    "gradient_accumulation_steps", None, "Steps whose gradients make one update.", 2
)
flags.DEFINE_bool(
    "remat",
    False,
    "Compute blocks again on the way back rather than keep what they computed: less memory.",
)
flags.DEFINE_enum(
    "distribution",
    "none",
    ["none", "data_parallel", "model_parallel", "mirrored", "multi_worker_mirrored"],
    "How several devices share the work.",
)
flags.DEFINE_bool(
    "skip_broken_images", False, "Leave out files that are no images, rather than stop."
)
flags.DEFINE_integer("seed", 0, "Of weights, order, augmentation and dropout.")

COORDINATOR = "KERAS_DISTRIBUTION_JOB_ADDRESSES"


@contextlib.contextmanager
def of_flag(name):
    """Errors say which flag they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"--{name} {FLAGS[name].value}: {error}") from error


def start_distribution():
    """Says to Keras how devices share the work.

    Returns:
        (the scope to build in, how many devices share a batch, number of processes, which of them
        this is).
    """
    backend, kind = keras.backend.backend(), FLAGS.distribution
    if kind == "multi_worker_mirrored":
        raise ValueError(
            "MultiWorkerMirroredStrategy fails inside the fit of Keras 3 (keras issue 20585). For "
            "several machines use "
            "--distribution data_parallel with KERAS_BACKEND=jax."
        )
    wanted = {"data_parallel": "jax", "model_parallel": "jax", "mirrored": "tensorflow"}.get(
        kind, backend
    )
    if backend != wanted:
        raise ValueError(
            f"--distribution {kind} needs KERAS_BACKEND={wanted}. Received: KERAS_BACKEND={backend}"
        )
    if kind == "mirrored":
        import tensorflow as tf

        strategy = tf.distribute.MirroredStrategy()
        return strategy.scope(), strategy.num_replicas_in_sync, 1, 0
    if kind == "none":
        return contextlib.nullcontext(), 1, 1, 0
    import jax

    if COORDINATOR in os.environ:
        keras.distribution.initialize()
    devices = keras.distribution.list_devices()
    num_shares = len(devices) if kind == "data_parallel" else 1
    if kind == "data_parallel":
        distribution = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    else:
        if jax.process_count() > 1:
            raise ValueError(
                "--distribution model_parallel is for the devices of one machine; over several use "
                "data_parallel."
            )
        mesh = keras.distribution.DeviceMesh((1, len(devices)), ("batch", "model"), devices)
        distribution = keras.distribution.ModelParallel(
            layout_map=DeiTBackbone.get_layout_map(mesh)
        )
    keras.distribution.set_distribution(distribution)
    return contextlib.nullcontext(), num_shares, jax.process_count(), jax.process_index()


def read_data(num_processes, process):
    """(training set, validation set, names of the classes, whether its elements are names of
    files).
    """
    if FLAGS.data.startswith("tfds:"):
        import tensorflow_datasets as tfds

        builder = tfds.builder(FLAGS.data.removeprefix("tfds:"))
        image, label = builder.info.supervised_keys or (None, None)
        if label is None or not isinstance(builder.info.features[label], tfds.features.ClassLabel):
            raise ValueError(
                f"{FLAGS.data} is not of images with one class each. Received: "
                f"{builder.info.features}"
            )
        builder.download_and_prepare()
        held_out = "validation" if "validation" in builder.info.splits else "test"
        # In the order of the files, for the shuffling is ours, which knows how to go on; and not
        # yet decoded.
        options = {
            "shuffle_files": False,
            "as_supervised": True,
            "decoders": {image: tfds.decode.SkipDecoding()},
        }
        sets = [builder.as_dataset(split=split, **options) for split in ("train", held_out)]
        return *sets, tuple(builder.info.features[label].names), False
    parts = [pathlib.Path(os.path.expanduser(FLAGS.data)) / part for part in ("train", "val")]
    folders = [
        ImageFolder.open(part).checked(FLAGS.skip_broken_images, num_processes, process)
        for part in parts
    ]
    for folder in folders:
        if folder.skipped:
            logging.warning(
                "Left out %d files that are no images, such as %s",
                len(folder.skipped),
                ", ".join(folder.skipped[:5]),
            )
    training, validation = folders
    if training.class_names != validation.class_names:
        raise ValueError(
            f"{parts[0]} and {parts[1]} must have the same classes. "
            f"Received: {', '.join(training.class_names)}; {', '.join(validation.class_names)}"
        )
    return training.dataset(), validation.dataset(), training.class_names, True


def choose_recipe(names):
    """The recipe of the flags, or else the one for what the preset brings: weights and their
    classes.
    """
    if FLAGS.recipe:
        name = FLAGS.recipe
    elif not FLAGS.load_weights:
        name = "deit"
    else:
        # Of another number of classes, the preset's labels are left out.
        labels = (
            DeiTImageClassifier.from_preset(
                FLAGS.preset, load_weights=False, num_classes=len(names)
            ).labels
            or []
        )
        name = (
            "deit3_base_fine_tune_224"
            if names in (tuple(labels), imagenet_synsets())
            else "new_classes"
        )
    recipe = RECIPES[name]
    return (
        dataclasses.replace(recipe, learning_rate=FLAGS.learning_rate)
        if FLAGS.learning_rate
        else recipe
    )


def choose_batch_size(recipe, num_images, num_shares):
    """That of the flags, or else the recipe's for so many images, a multiple of the number of
    devices.
    """
    batch_size = recipe.batch_size_for(num_images)
    return FLAGS.batch_size or max(batch_size - batch_size % num_shares, num_shares)


def build_classifier(recipe, names):
    overrides = {
        "num_classes": len(names),
        "labels": list(names),
        "dtype": FLAGS.dtype_policy,
        "remat": FLAGS.remat,
    }
    if FLAGS.image_size:
        backbone = DeiTBackbone.from_preset(FLAGS.preset, load_weights=False)
        if any(FLAGS.image_size % side for side in backbone.patch_size):
            patch = " x ".join(map(str, backbone.patch_size))
            raise ValueError(
                f"--image_size must be a multiple of the preset's patches, {patch} pixels. "
                f"Received: {FLAGS.image_size}"
            )
        *_, channels = backbone.image_shape
        overrides["image_shape"] = (FLAGS.image_size, FLAGS.image_size, channels)
    if FLAGS.teacher:
        overrides["use_distillation_token"] = True
    overrides |= {"activation": None, **recipe.model_overrides()}  # the losses are of logits
    classifier = DeiTImageClassifier.from_preset(
        FLAGS.preset, load_weights=FLAGS.load_weights, **overrides
    )
    if classifier.preprocessor is None:
        raise ValueError(
            f"{FLAGS.preset} does not say how images are converted for it. Save it with a "
            "`preprocessor`."
        )
    if classifier.backbone.data_format != "channels_last":
        raise ValueError("The batches are channels_last. Give a preset of that data format.")
    return classifier


def ema_momentum(recipe, steps, accumulated):
    """That of the recipe would, in a short training, hardly leave the first weights: the average is
    of a tenth of the training at most.
    """
    if not FLAGS.ema or recipe.ema_momentum is None:
        return None
    momentum = FLAGS.ema_momentum or min(
        recipe.ema_momentum, max(0.0, 1 - 10 * accumulated / steps)
    )
    # Keras averages at every step, whether or not it is an update
    return momentum ** (1 / accumulated)


def build_teacher(classifier, converter):
    """From the student's images, normalised, mixed and all, to the teacher's logits."""
    if FLAGS.teacher.endswith(".keras"):
        teacher = keras.saving.load_model(os.path.expanduser(FLAGS.teacher))
    else:
        # It is cropped already
        teacher = DeiTImageClassifier.from_preset(FLAGS.teacher, crop_ratio=1.0)
    given, taken = classifier.backbone.image_shape, teacher.input_shape[1:]
    if given[-1] != taken[-1] or (
        given != taken and getattr(teacher, "preprocessor", None) is None
    ):
        raise ValueError(
            f"The teacher takes images of {taken}, and the student's are {given}. Put layers that "
            "convert them in front of it."
        )
    levels = keras.layers.Rescaling(
        [255 * std for std in converter.std], [255 * mean for mean in converter.mean]
    )
    layers = [keras.Input(given), levels, getattr(teacher, "preprocessor", None), teacher]
    return keras.Sequential([layer for layer in layers if layer is not None], name="teacher")


class BestPreset(keras.callbacks.Callback):
    """Saves the classifier, as it is validated, whenever it is better than ever."""

    def __init__(self, classifier, converter, output, accuracy):
        super().__init__()
        self.classifier, self.converter, self.output, self.accuracy = (
            classifier,
            converter,
            output,
            accuracy,
        )

    def on_test_end(self, logs=None):
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                "The loss is no longer a number. Start again in another --output, with a lower "
                "--learning_rate."
            )
        if logs["accuracy"] <= self.accuracy:
            return
        self.accuracy = float(logs["accuracy"])
        self.classifier.preprocessor = self.converter
        self.classifier.save_to_preset(self.output / "best")
        self.classifier.preprocessor = None
        write(self.output / "best.json", json.dumps({"accuracy": self.accuracy}))


class EpochLog(keras.callbacks.CSVLogger):
    """Counts epochs from 1, as the terminal and the curves do."""

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch + 1, logs)


def write(path, text):
    """Whole or not at all."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(text)
    beside.replace(path)


def plot_curves(log, picture):
    """Loss and accuracy by epoch. An epoch that was run again after a kill counts once."""
    with open(log, newline="") as stream:
        rows = list({row["epoch"]: row for row in csv.DictReader(stream)}.values())
    figure = Figure((9, 3.5), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        for name in (metric, f"val_{metric}"):
            axes.plot(
                [int(row["epoch"]) for row in rows],
                [float(row[name]) for row in rows],
                label=name,
                marker=".",
            )
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=150)


def settings():
    """The flags that decide what is learnt."""
    ours = {flag.name: flag.value for flag in FLAGS.get_key_flags_for_module(__name__)}
    return {
        name: value
        for name, value in sorted(ours.items())
        if name not in ("output", "distribution", "jit")
    }


def check_settings(output):
    """A training goes on as it began."""
    path = output / "settings.json"
    if not (output / "checkpoints").exists() or not path.exists():
        return
    before = json.loads(path.read_text())
    changed = [
        f"--{name}: {before.get(name)!r}, now {value!r}"
        for name, value in settings().items()
        if before.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"{output} holds a training with other settings. Give those to go on with it, or "
            "another --output. "
            f"Received: {'; '.join(changed)}"
        )


def prepare(scratch):
    """(Number of processes, what to fit, and with which arguments.)

    Of several processes the first writes to --output, and the others to `scratch`: gathering
    weights takes them all.

    Raises:
        ValueError: what was asked for cannot be done.
    """
    scope, num_shares, num_processes, process = start_distribution()
    with of_flag("dtype_policy"):
        keras.dtype_policies.get(FLAGS.dtype_policy)
    kept = pathlib.Path(os.path.expanduser(FLAGS.output))
    output = kept if process == 0 else pathlib.Path(scratch)
    check_settings(kept)
    keras.utils.set_random_seed(FLAGS.seed)
    with of_flag("data"):
        training, validation, names, are_files = read_data(num_processes, process)
    with of_flag("preset"):
        find_preset(FLAGS.preset)
    recipe = choose_recipe(names)
    epochs, batch_size = (
        FLAGS.epochs or recipe.epochs_for(len(training)),
        choose_batch_size(recipe, len(training), num_shares),
    )
    steps = len(training) // batch_size
    if steps == 0 or batch_size % num_shares:
        raise ValueError(
            f"--batch_size must be at most the {len(training)} training images, and a multiple of "
            f"the number of devices, {num_shares}. "
            f"Received: {batch_size}"
        )
    if len(names) < 2:
        raise ValueError(f"There must be two classes or more. Received: {', '.join(names)}")

    checkpoint = TrainingCheckpoint(kept / "checkpoints")
    with scope:
        classifier = build_classifier(recipe, names)
        # The batches are converted already, with augmentation.
        converter, classifier.preprocessor = classifier.preprocessor, None
        model = classifier
        if FLAGS.teacher:
            with of_flag("teacher"):
                teacher = build_teacher(classifier, converter)
                model = DeiTDistiller(
                    classifier, teacher, FLAGS.distillation_type, FLAGS.alpha, FLAGS.temperature
                )
        accumulated = FLAGS.gradient_accumulation_steps or 1
        options = {"ema_momentum": ema_momentum(recipe, epochs * steps, accumulated)}
        if accumulated > 1:
            options["gradient_accumulation_steps"] = accumulated
        optimizer = recipe.build_optimizer(
            model, steps, epochs, batch_size * accumulated, **options
        )
        jit = {"auto": "auto", "on": True, "off": False}[FLAGS.jit]
        model.compile(
            optimizer, recipe.build_loss(), weighted_metrics=["accuracy"], jit_compile=jit
        )
        epoch = checkpoint.restore(model)
    checkpoint.directory = output / "checkpoints"

    *_, channels = classifier.backbone.image_shape
    augmentation = recipe.augmentation
    if channels != 3:
        logging.warning(
            "Images of %d channels: without what the recipe does to colours, RandAugment included.",
            channels,
        )
        augmentation = dataclasses.replace(
            augmentation, rand_augment=False, three_augment=False, color_jitter=0.0
        )
    shared = {
        "batch_size": batch_size // num_processes,
        "num_shards": num_processes,
        "shard": process,
    }
    shared["read"] = reader(channels) if are_files else decoder(channels)
    shared["num_classes"], shared["converter"] = len(names), converter
    buffer = len(training) if are_files else 10_000  # names are small, images are not
    start = epoch * steps * batch_size
    training = batches.training_batches(
        training, augmentation, shuffle_buffer_size=buffer, seed=FLAGS.seed, start=start, **shared
    )
    validation = batches.evaluation_batches(validation, **shared)

    record, log = kept / "best.json", output / "log.csv"
    best = json.loads(record.read_text())["accuracy"] if record.exists() else -1.0
    # What saves the best stands before what swaps the averages in: it is asked while they are
    # there.
    callbacks = [BestPreset(classifier, converter, output, best)]
    if options["ema_momentum"] is not None:
        callbacks.append(keras.callbacks.SwapEMAWeights())
    callbacks += [
        EpochLog(log, append=True),
        keras.callbacks.TensorBoard(output / "tensorboard"),
        keras.callbacks.LambdaCallback(
            on_epoch_end=lambda *_: plot_curves(log, output / "curves.png")
        ),
        checkpoint,
    ]
    arguments = {
        "x": training,
        "steps_per_epoch": steps,
        "initial_epoch": epoch,
        "epochs": epochs,
        "validation_data": validation,
        "callbacks": callbacks,
        "shuffle": False,
        "verbose": 2 if process == 0 else 0,
    }
    output.mkdir(parents=True, exist_ok=True)
    write(output / "settings.json", json.dumps(settings(), indent=4))
    return num_processes, model, arguments


def main(_):
    with tempfile.TemporaryDirectory() as scratch:
        try:
            num_processes, model, arguments = prepare(scratch)
        except ValueError as error:
            sys.exit(f"Not trained. {error}")
        try:
            model.fit(**arguments)
        except Exception:
            if num_processes == 1:
                raise
            # At once: JAX would wait minutes for the process that is gone.
            traceback.print_exc()
            print(
                "A process of the training failed. Start all of them again: they go on from the "
                "last epoch.",
                file=sys.stderr,
                flush=True,
            )
            shutil.rmtree(scratch)
            os._exit(1)


if __name__ == "__main__":
    app.run(main)
