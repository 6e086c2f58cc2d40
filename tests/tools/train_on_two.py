"""Runs `tools/train.py` on two virtual devices of the CPU.

The recipe mixes no images, because each process would mix its own, and has no drop path, because
its masks depend on the position in the batch.
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
tools = pathlib.Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(tools))  # as when it is started by `python tools/train.py`
runpy.run_path(str(tools / "train.py"), run_name="__main__")
