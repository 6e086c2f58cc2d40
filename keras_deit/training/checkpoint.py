"""Resumes an interrupted training exactly, from the end of its last epoch."""

import hashlib
import itertools
import json
import os
import pathlib
import shutil

import keras

from keras_deit.atomic import atomic_directory
from keras_deit.presets.safetensors_file import parse_tensors, write_tensors

_TENSORS, _STATE = "training.safetensors", "state.json"
_HDF5 = "training.weights.h5"  # what versions before 0.2 wrote


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

    Raises:
        ValueError: if `directory` is not a path or is a file.

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
        self.directory = _check_directory(directory)
        super().__init__()
        self._global_generators: list = []

    def restore(self, model: keras.Model) -> int:
        """Restores a built and compiled model.

        Returns:
            The number of finished epochs: pass it to `fit` as `initial_epoch`. It is 0 if there is
            no checkpoint.

        Raises:
            ValueError: if the checkpoint is of another architecture, optimizer or version, or its
                files are damaged.
        """
        epochs = self._epochs()
        if not epochs:
            return 0
        folder = epochs[-1]
        if (folder / _HDF5).exists():
            raise ValueError(
                f"The checkpoint {folder} is of an older version of keras_deit, which wrote "
                f"{_HDF5}. Finish the training with that version, or remove the checkpoint to "
                "train from the start."
            )
        if not model.optimizer.built:  # a second build would add variables to LossScaleOptimizer
            model.optimizer.build(model.trainable_variables)
        try:
            state = json.loads((folder / _STATE).read_text())
            saved = _read(folder, state["sha256"])
            global_generators = state["global_generators"]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"The checkpoint {folder} is damaged. Remove it to train from the start. {error}"
            ) from error
        own = _variables(model)
        for part in own:
            _check_shapes(part, _shapes(saved[part]), _shapes(own[part]), folder)
        for part, variables in own.items():
            saved[part].reverse()
            for variable in variables:
                variable.assign(saved[part].pop())  # which releases the array
        self._global_generators = global_generators
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
        target = self.directory / f"epoch_{epoch + 1:05d}"
        with atomic_directory(target, replaceable=(_TENSORS, _STATE, _HDF5)) as folder:
            state = {
                "sha256": _write(folder, _variables(self.model)),
                "global_generators": _global_generators(),
            }
            (folder / _STATE).write_text(json.dumps(state))
        for folder in before:
            if folder != target:
                shutil.rmtree(folder)

    def _epochs(self):
        return sorted(self.directory.glob("epoch_*"))


def _check_directory(directory):
    if not isinstance(directory, (str, os.PathLike)):
        raise ValueError(
            f"`directory` must be the path of a directory. Received: directory={directory!r}"
        )
    path = pathlib.Path(directory)
    if path.exists() and not path.is_dir():
        raise ValueError(
            "`directory` must be the path of a directory, but is a file. Use another path. "
            f"Received: directory={directory!r}"
        )
    return path


def _variables(model):
    """What is saved, by the part it belongs to. The model's part contains its random seeds."""
    return {"model": model.variables, "optimizer": model.optimizer.variables}


def _write(folder, variables):
    """Writes all variables and returns the file's SHA-256.

    They are numbered, because their paths change when a process builds a second model.
    """
    write_tensors(
        folder / _TENSORS,
        {
            f"{part}/{number}": keras.ops.convert_to_numpy(variable)
            for part, members in variables.items()
            for number, variable in enumerate(members)
        },
    )
    with open(folder / _TENSORS, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read(folder, sha256):
    """The arrays that `_write` wrote, in lists by part."""
    content = (folder / _TENSORS).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{_TENSORS} has changed: its SHA-256 is {found} instead of {sha256}.")
    arrays = {"model": {}, "optimizer": {}}
    for name, array in parse_tensors(content, folder / _TENSORS).items():
        part, number = name.split("/")
        arrays[part][int(number)] = array
    return {part: [array for _, array in sorted(of.items())] for part, of in arrays.items()}


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


def _shapes(arrays):
    return [list(array.shape) for array in arrays]


def _check_shapes(part, saved, own, folder):
    if saved == own:
        return
    differ = next(
        pair for pair in itertools.zip_longest(saved, own, fillvalue="none") if pair[0] != pair[1]
    )
    other = "architecture" if part == "model" else "optimizer"
    raise ValueError(
        f"The checkpoint {folder} is of another {other}: it has {len(saved)} variables and the "
        f"{part} has {len(own)}. The first shapes that differ are {differ[0]} in the checkpoint "
        f"and {differ[1]} in the {part}. Train with the original settings, or use another "
        "directory."
    )
