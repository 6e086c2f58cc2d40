"""Resumes an interrupted training exactly, from the end of its last epoch."""

import itertools
import json
import os
import pathlib
import shutil

import keras

from keras_deit.atomic import atomic_directory
from keras_deit.layers.rematerialization import SEED_STATE

_WEIGHTS, _STATE = "training.weights.h5", "state.json"


class TrainingCheckpoint(keras.callbacks.Callback):
    """Saves the training state after every epoch, to resume with the same results.

    The state is the weights, the optimizer with its moving averages, and the random seeds. Unlike
    `keras.callbacks.BackupAndRestore`:

    - the seeds are saved, so the rest of the training draws the same dropout masks;
    - weights and epoch number are one atomic write, so killing the process never mixes two epochs;
    - `restore` returns the epoch before `fit`, so the data pipeline can start there too.

    Args:
        directory: path of a directory that contains nothing else. Only the newest checkpoint is
            kept. When several processes train together, all must `restore` from the directory of
            the first process and then save to their own, because gathering the weights needs every
            process: set the attribute `directory` in between.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("adamw", "mse")
    >>> checkpoint = TrainingCheckpoint("doctest_checkpoints")
    >>> epoch = checkpoint.restore(model)  # 0, or where it was interrupted
    >>> images, labels = np.zeros((4, 2)), np.zeros((4, 1))
    >>> history = model.fit(
    ...     images, labels, epochs=3, initial_epoch=epoch, callbacks=[checkpoint], verbose=0
    ... )
    >>> checkpoint.restore(model)
    3
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        super().__init__()
        self.directory = pathlib.Path(directory)
        self._global_generators: list = []

    def restore(self, model: keras.Model) -> int:
        """Restores a built and compiled model.

        Returns:
            The number of finished epochs: pass it to `fit` as `initial_epoch`. It is 0 if there is
            no checkpoint.

        Raises:
            ValueError: if the checkpoint is of another architecture or its files are damaged.
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
                f"The checkpoint {folder} is damaged. Remove it to train from the start. {error}"
            ) from error
        return int(folder.name.removeprefix("epoch_"))

    def on_train_begin(self, logs=None):
        for unfinished in self.directory.glob(".epoch_*"):  # of a process that was killed
            shutil.rmtree(unfinished)

    def on_epoch_begin(self, epoch, logs=None):
        # Not in `restore`: `fit` draws from the generators before the first epoch.
        _set_global_generators(self._global_generators)
        self._global_generators = []

    def on_epoch_end(self, epoch, logs=None):
        before = self._epochs()
        state = {
            "shapes": _shapes(self.model),
            "seeds": [keras.ops.convert_to_numpy(seed).tolist() for seed in _seeds(self.model)],
            "global_generators": _global_generators(),
        }
        target = self.directory / f"epoch_{epoch + 1:05d}"
        with atomic_directory(target, replaceable=(_WEIGHTS, _STATE)) as folder:
            self.model.save_weights(folder / _WEIGHTS)
            (folder / _STATE).write_text(json.dumps(state))
        for folder in before:
            if folder != target:
                shutil.rmtree(folder)

    def _epochs(self):
        return sorted(self.directory.glob("epoch_*"))


def _seeds(model):
    """States of the dropout generators, which Keras does not save with the weights."""
    return [variable for variable in model.variables if variable.name == SEED_STATE]


def _global_generators():
    """States of PyTorch's CPU and GPU generators, which dropout without a seed draws from."""
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
            f"The checkpoint {folder} is of another architecture: it has {len(saved)} weights and "
            f"the model has {len(own)}. The first shapes that differ are {differ[1]} in the "
            f"checkpoint and {differ[0]} in the model. Train with the original settings, or use "
            "another directory."
        )
