"""Measures how good the features of a model are for your images, without training it.

    pip install ".[probe]"
    python tools/probe.py --data photos --preset deit_tiny_distilled_patch16_224 --output run

`--data` is a folder with the subfolders `train` and `val`, each with one folder of images per
class, or `tfds:NAME` for a dataset of TensorFlow Datasets. The accuracies are those on `val`:

    k-NN            a vote of the 10, and of the 20, most similar training images
    linear probe    a logistic regression on all training images
    few-shot        a ridge regression on 1, 5 and 10 training images of each class: mean and
                    standard deviation of ten random draws

`--output` receives `probe.json`, with the same numbers as the table that is printed, and the folder
`features`. The model runs once on each image. To resume an interrupted run, start it again with the
same flags: it continues after the last 2048 images. With features in the folder already, only the
methods run again.

All features are in memory at once, 4 bytes each, up to four times: 1 GB for 300,000 images and 200
features, 8 GB for ImageNet and 384 features.
"""

import json
import os
import pathlib
import sys

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags
from flag_errors import of_flag
from probing.features import POOLINGS, FeatureCache, feature_model, load_classifier, model_settings
from probing.methods import few_shot, linear_probe, nearest_neighbors
from training.data import open_images
from training.devices import Devices

from keras_deit.atomic import atomic_file
from keras_deit.presets import find_preset

FLAGS = flags.FLAGS
flags.DEFINE_string("data", None, "Folder with train/ and val/, or tfds:NAME.", required=True)
flags.DEFINE_string("preset", None, "Name, hf:// address or directory of the model.", required=True)
flags.DEFINE_string("output", None, "Folder for features and results.", required=True)
flags.DEFINE_enum(
    "pooling",
    None,
    POOLINGS,
    "What the features are. Default: what the preset's head reads, or else the class token.",
)
flags.DEFINE_list("shots", ["1", "5", "10"], "Numbers of training images per class.")
flags.DEFINE_integer("batch_size", 64, "Number of images per batch.", 1)
flags.DEFINE_string("dtype_policy", "float32", "Keras dtype policy, such as mixed_bfloat16.")
flags.DEFINE_bool("skip_broken_images", False, "Skip images that cannot be read.")
flags.DEFINE_integer("seed", 0, "Seed of the random draws.", 0)

NEIGHBORS = (10, 20)
NUM_DRAWS = 10
RESULTS = "probe.json"


def parse_shots():
    try:
        shots = sorted({int(text) for text in FLAGS.shots})
    except ValueError:
        shots = []
    if not shots or shots[0] < 1:
        raise ValueError(
            f"--shots must be integers above 0, such as 1,5,10. Received: {','.join(FLAGS.shots)}"
        )
    return shots


def check_counts(labels, class_names, shots):
    """Every class needs enough images for the draws, and the choice of C needs two of one."""
    counts = np.bincount(labels, minlength=len(class_names))
    few = [(name, count) for name, count in zip(class_names, counts) if count < shots[-1]]
    if few:
        listed = ", ".join(f"{name} ({count})" for name, count in few[:5])
        raise ValueError(
            f"--shots {shots[-1]} needs {shots[-1]} training images of every class. Add images, or "
            f"use lower --shots. Received: {listed}{', ...' if len(few) > 5 else ''}"
        )
    if counts.max() < 2:
        raise ValueError(
            "The linear probe needs a class with two training images, one of them to choose its "
            "regularization. Add images. Received: one image of each class"
        )


def load_model():
    with of_flag("dtype_policy", FLAGS.dtype_policy):
        keras.dtype_policies.get(FLAGS.dtype_policy)
    with of_flag("preset", FLAGS.preset):
        classifier = load_classifier(FLAGS.preset, FLAGS.pooling, dtype=FLAGS.dtype_policy)
        is_channels_first = classifier.preprocessor.data_format == "channels_first"
        num_channels = classifier.input_shape[1 if is_channels_first else -1]
        if num_channels not in (1, 3):
            raise ValueError(
                "Images are read with 1 or 3 channels. Received: a preset for "
                f"{num_channels} channels"
            )
    return classifier


def settings_of(classifier, training, validation):
    """What the features depend on."""
    preprocessor = classifier.preprocessor.get_config()
    return {
        **model_settings(classifier),
        "dtype_policy": FLAGS.dtype_policy,
        "train": training.identity,
        "val": validation.identity,
        **{
            name: preprocessor.get(name)
            for name in ("image_size", "crop_ratio", "interpolation", "mean", "std")
        },
    }


def measure(training, test, shots):
    """Yields a result of each method: its name, its setting, accuracies."""
    for k in NEIGHBORS:
        yield {"method": "k-NN", "k": k, "accuracy": nearest_neighbors(training, test, k)}
    accuracy, inverse_penalty = linear_probe(training, test, FLAGS.seed)
    yield {"method": "linear probe", "C": inverse_penalty, "accuracy": accuracy}
    for number in shots:
        accuracies = few_shot(training, test, number, NUM_DRAWS, FLAGS.seed)
        yield {
            "method": "few-shot",
            "images_per_class": number,
            "accuracy": float(np.mean(accuracies)),
            "standard_deviation": float(np.std(accuracies, ddof=1)),
            "draws": accuracies,
        }


def in_words(result):
    setting = {
        "k-NN": "{k} neighbours",
        "linear probe": "C = {C:g}",
        "few-shot": "{images_per_class} per class",
    }[result["method"]].format(**result)
    spread = f" ± {result['standard_deviation']:.1%}" if "draws" in result else ""
    return f"{result['method']:14} {setting:16} {result['accuracy']:6.1%}{spread}"


def run():
    shots = parse_shots()
    with of_flag("preset", FLAGS.preset):
        find_preset(FLAGS.preset, load_weights=False)  # before the images are checked
    training, validation = open_images(FLAGS, Devices())
    if training.are_files:  # of TensorFlow Datasets, labels are known after reading them
        check_counts(training.labels, training.class_names, shots)
    classifier = load_model()
    output = pathlib.Path(os.path.expanduser(FLAGS.output))
    with of_flag("output", output):
        if output.exists() and not output.is_dir():
            raise ValueError("Expected a folder, and this is a file. Use another path.")
        settings = settings_of(classifier, training, validation)
        cache = FeatureCache(output / "features", settings)
        model = feature_model(classifier)
        features = {
            part: cache.features(part, images, model, classifier.preprocessor, FLAGS.batch_size)
            for part, images in (("train", training), ("val", validation))
        }
    check_counts(features["train"][1], training.class_names, shots)
    results = []
    for result in measure(features["train"], features["val"], shots):
        results.append(result)
        print(in_words(result), flush=True)
    content = {
        "preset": FLAGS.preset,
        "training_images": len(training),
        "validation_images": len(validation),
        "seed": FLAGS.seed,
        "features": settings,
        "results": results,
    }
    with atomic_file(output / RESULTS) as file:
        file.write_text(json.dumps(content, indent=4) + "\n")


def main(_):
    try:
        run()
    except (ValueError, OSError) as error:
        sys.exit(f"Not probed. {error}")


if __name__ == "__main__":
    app.run(main)
