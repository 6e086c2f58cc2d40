"""How the devices and processes of a training share the work."""

import contextlib
import dataclasses
import os

import keras

from keras_deit.models import DeiTBackbone

KINDS = ("none", "data_parallel", "model_parallel", "mirrored", "multi_worker_mirrored")
BACKENDS = {"data_parallel": "jax", "model_parallel": "jax", "mirrored": "tensorflow"}
COORDINATOR = "KERAS_DISTRIBUTION_JOB_ADDRESSES"


@dataclasses.dataclass(frozen=True)
class Devices:
    """
    Args:
        num_shares: how many devices split a batch.
        num_processes, process: the number of processes, and the index of this one.
        scope: context manager to build the model in.
    """

    num_shares: int = 1
    num_processes: int = 1
    process: int = 0
    scope: object = dataclasses.field(default_factory=contextlib.nullcontext)


def start_devices(kind):
    """Sets up Keras for a value of --distribution, one of `KINDS`."""
    backend = keras.backend.backend()
    if kind == "multi_worker_mirrored":
        raise ValueError(
            "--distribution multi_worker_mirrored: Keras 3 cannot `fit` under "
            "MultiWorkerMirroredStrategy (keras issue 20585). To train on several machines, use "
            "--distribution data_parallel with KERAS_BACKEND=jax."
        )
    if BACKENDS.get(kind, backend) != backend:
        raise ValueError(
            f"--distribution {kind} needs KERAS_BACKEND={BACKENDS[kind]}. Received: "
            f"KERAS_BACKEND={backend}"
        )
    if kind == "none":
        return Devices()
    return _mirrored() if kind == "mirrored" else _jax(kind)


def _mirrored():
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy()
    return Devices(num_shares=strategy.num_replicas_in_sync, scope=strategy.scope())


def _jax(kind):
    import jax

    if COORDINATOR in os.environ:
        keras.distribution.initialize()
    names = keras.distribution.list_devices()
    if kind == "data_parallel":
        distribution = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)
    else:
        if jax.process_count() > 1:
            raise ValueError(
                "--distribution model_parallel splits the model over the devices of one machine. "
                "To train on several machines, use --distribution data_parallel."
            )
        mesh = keras.distribution.DeviceMesh((1, len(names)), ("batch", "model"), names)
        layout_map = DeiTBackbone.get_layout_map(mesh)
        distribution = keras.distribution.ModelParallel(layout_map=layout_map)
    keras.distribution.set_distribution(distribution)
    num_shares = len(names) if kind == "data_parallel" else 1
    return Devices(num_shares, jax.process_count(), jax.process_index())
