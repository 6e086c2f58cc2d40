"""`examples/train.py` on two devices of this machine's processor.

With a recipe that mixes no images, for each process would mix its own, and without drop path, whose
masks go by the place in a batch.
"""

import dataclasses
import functools
import pathlib
import runpy
import sys

import tensorflow as tf

from keras_deit.training import RECIPES, Augmentation

if "--distribution=mirrored" in sys.argv:
    (processor,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        processor, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    tf.distribute.MirroredStrategy = functools.partial(
        tf.distribute.MirroredStrategy, ["CPU:0", "CPU:1"]
    )
RECIPES["unmixed"] = dataclasses.replace(
    RECIPES["deit"],
    augmentation=Augmentation(rand_augment=True, erasing_rate=0.25),
    drop_path_rate=0.0,
)
runpy.run_path(
    str(pathlib.Path(__file__).parents[2] / "examples" / "train.py"), run_name="__main__"
)
