"""A training that is killed at any moment goes on from its last whole epoch, and ends as if nothing
had happened.
"""

import itertools
import json
import pathlib
import shutil
import tempfile

import keras

from keras_deit.layers.rematerialization import SEED_STATE

_WEIGHTS, _STATE = "training.weights.h5", "state.json"


class TrainingCheckpoint(keras.callbacks.Callback):
    """Keeps the state of a training at the end of each epoch: weights, optimizer with its averages
    and steps, seeds of dropout.

    Unlike `keras.callbacks.BackupAndRestore` it keeps seeds, so that the rest of the training draws
    what it would have drawn; weights and the number of the epoch are written as one, so that no
    moment to be killed in parts them; and `restore` says where the training goes on before `fit`,
    so that the data can.

    Args:
        directory: path, of nothing but checkpoints. The newest is kept. Where several processes
            train together, all restore from that of the first, and each saves to one of its own,
            for gathering weights takes them all: set the attribute between.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("adamw", "mse")
    >>> checkpoint = TrainingCheckpoint("doctest_checkpoints")
    >>> epoch = checkpoint.restore(model)  # 0, or where it was killed
    >>> images, labels = np.zeros((4, 2)), np.zeros((4, 1))
    >>> history = model.fit(images, labels, epochs=3, initial_epoch=epoch, callbacks=[checkpoint], verbose=0)
    >>> checkpoint.restore(model)
    3
    """

    def __init__(self, directory):
        super().__init__()
        self.directory = pathlib.Path(directory)
        self._global_generators = []

    def restore(self, model):
        """Gives a built, compiled model the state of the last whole epoch.

        Returns:
            The number of epochs that are done: 0 where there is no checkpoint.

        Raises:
            ValueError: the checkpoint is of another architecture, or its files were altered.
        """
        epochs = self._epochs()
        if not epochs:
            return 0
        folder = epochs[-1]
        model.optimizer.build(model.trainable_variables)
        try:
            state = json.loads((folder / _STATE).read_text())
            shapes, seeds = state["shapes"], state["seeds"]
            _check_shapes(shapes, _shapes(model), folder)
            model.load_weights(folder / _WEIGHTS)
            for generator, seed in zip(_seeds(model), seeds, strict=True):
                generator.assign(seed)
            self._global_generators = state["global_generators"]
        except (OSError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(
                f"The checkpoint {folder} cannot be read ({error}). Remove the folder to start "
                "again."
            ) from error
        return int(folder.name.removeprefix("epoch_"))

    def on_train_begin(self, logs=None):
        for unfinished in self.directory.glob(".writing_*"):
            shutil.rmtree(unfinished)

    def on_epoch_begin(self, epoch, logs=None):
        # Only now: `fit` has drawn from them to get ready.
        _set_global_generators(self._global_generators)
        self._global_generators = []

    def on_epoch_end(self, epoch, logs=None):
        self.directory.mkdir(parents=True, exist_ok=True)
        before = self._epochs()
        work = pathlib.Path(tempfile.mkdtemp(prefix=".writing_", dir=self.directory))
        try:
            self.model.save_weights(work / _WEIGHTS)
            seeds = [keras.ops.convert_to_numpy(seed).tolist() for seed in _seeds(self.model)]
            state = {
                "shapes": _shapes(self.model),
                "seeds": seeds,
                "global_generators": _global_generators(),
            }
            (work / _STATE).write_text(json.dumps(state))
            target = self.directory / f"epoch_{epoch + 1:05d}"
            if target.exists():  # of a training before, that this one did not go on with
                shutil.rmtree(target)
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        for folder in before:
            if folder != target:
                shutil.rmtree(folder)

    def _epochs(self):
        return sorted(self.directory.glob("epoch_*"))


def _seeds(model):
    """States of the generators that dropout draws from. Keras saves all else."""
    return [variable for variable in model.variables if variable.name == SEED_STATE]


def _global_generators():
    """States of PyTorch's own generators, for the processor and for each GPU: dropout without a
    seed draws from them there.
    """
    if keras.backend.backend() != "torch":
        return []
    import torch

    return [
        bytes(state.tolist()).hex()
        for state in (torch.get_rng_state(), *torch.cuda.get_rng_state_all())
    ]


def _set_global_generators(states):
    if keras.backend.backend() != "torch" or not states:
        return
    import torch

    first, *others = (
        torch.tensor(list(bytes.fromhex(state)), dtype=torch.uint8) for state in states
    )
    torch.set_rng_state(first)
    if len(others) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(others)


def _shapes(model):
    return [list(variable.shape) for variable in model.weights]


def _check_shapes(saved, own, folder):
    if saved != own:
        differ = next(
            pair
            for pair in itertools.zip_longest(own, saved, fillvalue="none")
            if pair[0] != pair[1]
        )
        raise ValueError(
            f"The checkpoint {folder} is of another architecture. Expected: {len(own)} weights. "
            f"Received: {len(saved)}. The first that "
            f"differ are {differ[0]} here and {differ[1]} there. Go on with the settings of that "
            "training, or give another directory."
        )
