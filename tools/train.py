"""Trains a DeiT on your images: fine-tunes it, trains it from scratch, or distils a teacher.

    pip install ".[train]"

Fine-tune a published model:

    python tools/train.py --data photos --preset deit_tiny_distilled_patch16_224 --output run

Train the same architecture from scratch:

    python tools/train.py --data photos --preset deit_tiny_distilled_patch16_224 --output run \\
        --noload_weights --recipe deit

Train less of the model: `--tune attention`, `bias`, `head` or `lora`, or `--freeze_blocks 6`.

Distil a larger model:

    python tools/train.py --data photos --preset deit_tiny_distilled_patch16_224 --output run \\
        --teacher deit3_base_patch16_224

Its blocks can teach as well as its answers (`--block_distillation relations:-1:-2`). Without a
teacher, `--cosub` lets two submodels teach each other.

`--data` is a folder with the subfolders `train` and `val`, each with one folder of images per
class, or `tfds:NAME` for a dataset of TensorFlow Datasets. Without `--recipe`, new classes get a
recipe whose batch size and epochs fit the number of images.

`--output` receives:

    best          preset of the epoch with the best validation accuracy
    best_lora.safetensors
                  with `--tune lora`, the adapters and the head of that epoch, which `best` has in
                  its kernels
    log.csv       metrics by epoch (an epoch that ran twice has two rows)
    curves.png    loss and accuracy by epoch
    tensorboard   logs for TensorBoard
    checkpoints   the state after the last epoch

To resume an interrupted training, start it again with the same flags. It resumes after its last
finished epoch; on a CPU, the final weights are bit-identical to those of an uninterrupted run.

On several devices, use `--distribution data_parallel` or `model_parallel` with KERAS_BACKEND=jax,
or `mirrored` with TensorFlow. On several machines, use JAX and set on each the variables
KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES and _PROCESS_ID of `keras.distribution.initialize`;
`--output` must be a folder that all of them can access.
"""

import os
import pathlib
import shutil
import sys
import tempfile
import traceback

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags
from flag_errors import of_flag
from training.data import make_batches, open_images
from training.devices import KINDS, start_devices
from training.distillation import check_distillation
from training.model import build_model, choose_recipe, choose_schedule, parse_image_sizes
from training.run_directory import (
    EpochLog,
    UnreadableImage,
    best_accuracy,
    callbacks,
    check_settings,
    write_settings,
)
from training.tuning import TUNE, check_tuning

from keras_deit.presets import find_preset
from keras_deit.training import RECIPES, TrainingCheckpoint

FLAGS = flags.FLAGS
flags.DEFINE_string("data", None, "Folder with train/ and val/, or tfds:NAME.", required=True)
flags.DEFINE_string(
    "preset", None, "Name, hf:// address or directory of the model to train.", required=True
)
flags.DEFINE_string("output", None, "Folder for everything that is written.", required=True)
flags.DEFINE_bool("load_weights", True, "Start from the weights of the preset.")
flags.DEFINE_string(
    "teacher", None, "Teacher to distil: a preset, or a .keras file that takes images of 0 to 255."
)
flags.DEFINE_enum("distillation_type", "hard", ["hard", "soft"], "Kind of distillation loss.")
flags.DEFINE_float("alpha", 0.5, "Weight of the distillation loss, 0 to 1.", 0.0, 1.0)
flags.DEFINE_float("temperature", 1.0, "Temperature of soft distillation.", 1e-3)
flags.DEFINE_list(
    "block_distillation",
    [],
    "What blocks of the student learn from blocks of the teacher, as KIND:STUDENT_BLOCK:"
    "TEACHER_BLOCK[:WEIGHT], such as relations:-1:-1:0.5. KIND is attention, features or "
    "relations; negative numbers of blocks count from the end.",
)
flags.DEFINE_bool("cosub", False, "Let two submodels of the model teach each other.")
flags.DEFINE_enum(
    "recipe",
    None,
    list(RECIPES),
    "Training recipe. Default: deit without the preset's weights, deit3_base_fine_tune_224 if the "
    "preset has the same classes, new_classes otherwise.",
)
flags.DEFINE_integer("epochs", None, "Number of epochs. Default: the recipe's.", 1)
flags.DEFINE_integer(
    "batch_size",
    None,
    "Images per step, over all devices. Default: the recipe's, or less for a small dataset.",
    1,
)
flags.DEFINE_integer(
    "image_size", None, "Height and width of the images in pixels. Default: the preset's.", 1
)
flags.DEFINE_list(
    "image_sizes",
    None,
    "Instead of --image_size: sizes in pixels that the training images grow through, such as "
    "128,176,224. Validation uses the last. `best` takes images of any size.",
)
flags.DEFINE_integer(
    "num_merged_tokens",
    None,
    "Number of tokens that each block merges, in training and in the saved model. Default: the "
    "preset's.",
    0,
)
flags.DEFINE_float(
    "keep_rate",
    None,
    "Share of the patch tokens that three blocks keep, in training and in the saved model. "
    "Default: the preset's.",
    1e-3,
    1.0,
)
flags.DEFINE_string("dtype_policy", "float32", "Keras dtype policy, such as mixed_bfloat16.")
flags.DEFINE_enum("jit", "auto", ["auto", "on", "off"], "Whether to compile the step with XLA.")
flags.DEFINE_bool("ema", True, "Validate and save the moving average of the weights.")
flags.DEFINE_float(
    "ema_momentum",
    None,
    "Momentum of the moving average. Default: the recipe's, or less in a short training.",
    0.0,
    1.0,
)
flags.DEFINE_bool(
    "ema_warmup",
    False,
    "Let the momentum of the moving average rise from 0: for long trainings from scratch.",
)
flags.DEFINE_enum("tune", "all", list(TUNE), "What trains of the backbone. The head always does.")
flags.DEFINE_integer("freeze_blocks", 0, "Freeze the embedding and that many first blocks.", 0)
flags.DEFINE_integer("lora_rank", None, "Rank of the adapters of --tune lora. Default: 8.", 1)
flags.DEFINE_list(
    "lora_targets", None, "Layers with adapters, such as qkv,mlp/projection. Default: qkv."
)
flags.DEFINE_float(
    "layer_decay",
    None,
    "Factor of the learning rate from each block to the block before it, such as 0.75.",
    0.0,
    1.0,
)
flags.DEFINE_float(
    "learning_rate",
    None,
    "Learning rate at the recipe's batch size. Default: the recipe's.",
    1e-12,
)
flags.DEFINE_integer(
    "gradient_accumulation_steps", None, "Number of steps per update of the weights.", 2
)
flags.DEFINE_bool("remat", False, "Use gradient checkpointing: less memory, slower steps.")
flags.DEFINE_enum("distribution", "none", list(KINDS), "How to use several devices.")
flags.DEFINE_bool("skip_broken_images", False, "Skip images that cannot be read.")
flags.DEFINE_integer("seed", 0, "Seed of weights, order, augmentation and dropout.")


def prepare(scratch):
    """Builds everything that `fit` needs.

    All processes need the checkpoint of the first, and gathering the weights takes all of them. So
    the others save, too: to `scratch`.

    Returns:
        (number of processes, the model, the arguments of its `fit`).
    """
    devices = start_devices(FLAGS.distribution)
    shared_output = pathlib.Path(os.path.expanduser(FLAGS.output))
    output = shared_output if devices.process == 0 else pathlib.Path(scratch)
    check_settings(shared_output, settings(), defaults())
    check_tuning(FLAGS)
    parse_image_sizes(FLAGS)
    check_distillation(FLAGS)
    with of_flag("dtype_policy", FLAGS.dtype_policy):
        keras.dtype_policies.get(FLAGS.dtype_policy)
    with of_flag("preset", FLAGS.preset):
        find_preset(FLAGS.preset, load_weights=False)
    keras.utils.set_random_seed(FLAGS.seed)

    training, validation = open_images(FLAGS, devices)
    recipe = choose_recipe(FLAGS, training.class_names)
    schedule = choose_schedule(FLAGS, recipe, len(training), devices.num_shares)
    checkpoint = TrainingCheckpoint(shared_output / "checkpoints")
    with devices.scope:
        model = build_model(FLAGS, recipe, schedule, training.class_names)
        epoch = checkpoint.restore(model.fitted)
    checkpoint.directory = output / "checkpoints"
    start = epoch * schedule.steps_per_epoch * schedule.batch_size
    training, validation, unreadable = make_batches(
        training, validation, recipe, model, schedule, start, FLAGS.seed, devices
    )
    output.mkdir(parents=True, exist_ok=True)
    write_settings(output, settings())
    arguments = {
        "x": training,
        "steps_per_epoch": schedule.steps_per_epoch,
        "initial_epoch": epoch,
        "epochs": schedule.epochs,
        "validation_data": validation,
        "callbacks": callbacks(output, model, best_accuracy(shared_output), checkpoint, unreadable),
        "shuffle": False,
        "verbose": 2 if devices.process == 0 else 0,
    }
    return devices.num_processes, model.fitted, arguments


def settings():
    """The flags of this program by name."""
    return {flag.name: flag.value for flag in FLAGS.get_key_flags_for_module(__name__)}


def defaults():
    return {flag.name: flag.default for flag in FLAGS.get_key_flags_for_module(__name__)}


def main(_):
    with tempfile.TemporaryDirectory() as scratch:
        try:
            num_processes, model, arguments = prepare(scratch)
        except ValueError as error:
            sys.exit(f"Not trained. {error}")
        try:
            model.fit(**arguments)
        except Exception as error:
            for callback in arguments["callbacks"]:
                if isinstance(callback, EpochLog):
                    callback.close()
            if num_processes == 1:
                if isinstance(error, UnreadableImage):
                    sys.exit(f"Stopped. {error}")
                raise
            traceback.print_exc()
            print(
                "A process of the training failed. Start all processes again to resume after the "
                "last epoch.",
                file=sys.stderr,
                flush=True,
            )
            shutil.rmtree(scratch)
            os._exit(1)  # JAX would wait minutes for the other processes


if __name__ == "__main__":
    app.run(main)
