"""Averages the weights of models that were fine-tuned from the same checkpoint: a "soup".

    pip install ".[train]"
    python tools/soup.py --presets run_1/best,run_2/best,run_3/best --output soup

With `--data`, a folder with the subfolder `val` or `tfds:NAME`, only those models are averaged
that together have the best validation accuracy (Wortsman et al., 2022, "greedy soup"):

    python tools/soup.py --presets run_1/best,run_2/best,run_3/best --output soup --data photos

`--output` is a new preset. Averaging takes as long as loading the models; the greedy soup of n
models evaluates 2 n - 1 times. It does not resume.

The validation images choose the models, so the soup's accuracy on them is too optimistic. Measure
it on others with tools/evaluate.py.
"""

import os
import pathlib
import sys

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags
from evaluation.accuracy import Accuracy
from flag_errors import of_flag
from training.data import open_validation_images
from training.devices import Devices

from keras_deit.atomic import check_directory, resolved
from keras_deit.models import DeiTImageClassifier
from keras_deit.presets import find_preset
from keras_deit.training import average_weights, greedy_soup

FLAGS = flags.FLAGS
flags.DEFINE_list("presets", None, "Directories or hf:// addresses of the models.", required=True)
flags.DEFINE_string("output", None, "Folder of the new preset.", required=True)
flags.DEFINE_string("data", None, "Folder with val/, or tfds:NAME, to choose the models by.")
flags.DEFINE_integer("batch_size", 64, "Number of images per batch.", 1)
flags.DEFINE_bool("skip_broken_images", False, "Skip images that cannot be read.")


def load(handle):
    with of_flag("presets", handle):
        return DeiTImageClassifier.from_preset(handle)


def check_flags():
    """Returns the output folder. Nothing is loaded before all flags are known to be good."""
    output = pathlib.Path(os.path.expanduser(FLAGS.output))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} exists already. Use another path, or remove it.")
    with of_flag("output", output):
        check_directory(output, replaceable=())
    useless = [name for name in ("batch_size", "skip_broken_images") if FLAGS[name].present]
    if useless and not FLAGS.data:
        raise ValueError(
            f"--{useless[0]} is for the images of --data. Add --data, or leave it out."
        )
    for handle in FLAGS.presets:
        with of_flag("presets", handle):
            if not find_preset(handle, load_weights=False).has_head:
                raise ValueError("The preset has no head. Use presets of classifiers.")
    # "a", "a/" and a link to it are one model. A name that is no path stays a name of its own.
    if len(FLAGS.presets) < 2 or len(set(map(resolved, FLAGS.presets))) < len(FLAGS.presets):
        raise ValueError(
            "--presets must list two or more different models, separated by commas. Received: "
            f"{','.join(FLAGS.presets) or 'none'}"
        )
    return output


def greedy():
    images = open_validation_images(FLAGS, Devices())
    soup = greedy_soup(FLAGS.presets, load, Accuracy(images, FLAGS.batch_size))
    for handle, score in sorted(soup.scores.items(), key=lambda item: -item[1]):
        print(
            f"{'averaged' if handle in soup.ingredients else 'left out':9} {score:7.2%}  {handle}"
        )
    print(f"soup      {soup.score:7.2%}  {len(soup.ingredients)} of {len(FLAGS.presets)} models")
    return soup.model


def run():
    output = check_flags()
    model = greedy() if FLAGS.data else average_weights(FLAGS.presets, load)
    with of_flag("output", output):
        model.save_to_preset(output)
    print(f"Saved {output}")


def main(_):
    try:
        run()
    except (ValueError, OSError) as error:
        sys.exit(f"Not averaged. {error}")


if __name__ == "__main__":
    app.run(main)
