"""Interrupted trainings resume exactly."""

import json
import os
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_deit.presets import read_tensors
from keras_deit.training import TrainingCheckpoint, checkpoint
from tests.helpers import images, raises, same_arrays, tiny_classifier

pytestmark = pytest.mark.backend


def compiled(num_layers=1):
    keras.utils.set_random_seed(0)
    model = tiny_classifier({"dropout_rate": 0.3, "num_layers": num_layers}, preprocessor=None)
    optimizer = keras.optimizers.AdamW(1e-2, use_ema=True, ema_momentum=0.9)
    # XLA compilation takes longer than this training, except on JAX.
    jit = keras.backend.backend() == "jax"
    model.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=jit
    )
    return model


def fit(model, *callbacks, epochs, initial_epoch=0):
    data = images(np.random.default_rng(0), 8), np.arange(8) % 5
    settings = {"batch_size": 4, "shuffle": False, "verbose": 0}
    model.fit(
        *data, epochs=epochs, initial_epoch=initial_epoch, callbacks=list(callbacks), **settings
    )


class Kill(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_resumed_training_equals_an_uninterrupted_one(tmp_path):
    unbroken = compiled()
    fit(unbroken, epochs=3)
    killed, saving = compiled(), TrainingCheckpoint(tmp_path / "checkpoints")
    with pytest.raises(KeyboardInterrupt):
        fit(killed, saving, Kill(1), epochs=3)
    resumed = compiled()
    assert saving.restore(resumed) == 1
    fit(resumed, saving, epochs=3, initial_epoch=1)
    for weight, expected in zip(resumed.get_weights(), unbroken.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["epoch_00003"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model trained for one epoch, and the directory of its checkpoint."""
    folder, model = tmp_path_factory.mktemp("saved"), compiled()
    fit(model, TrainingCheckpoint(folder), epochs=1)
    return model, folder


def state(model):
    return [*model.variables, *model.optimizer.variables]


@pytest.mark.parametrize(
    "policy",
    ["float32", "bfloat16", "mixed_bfloat16", "mixed_float16"],  # the last one scales the loss
)
def test_every_variable_is_restored(policy, tmp_path):
    """HDF5 has no bfloat16: Keras wrote such variables as float32."""
    keras.config.set_dtype_policy(policy)
    model, restored = (keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]) for _ in "ab")
    rng = np.random.default_rng(0)
    for one in (model, restored):
        one.compile(keras.optimizers.AdamW(0.1, use_ema=True), "mse", auto_scale_loss=True)
        one.optimizer.build(one.trainable_variables)
    for variable in state(model):
        if variable.dtype in ("bfloat16", "float16", "float32"):
            variable.assign(rng.normal(size=variable.shape))
    model.optimizer.iterations.assign(7)
    saving = TrainingCheckpoint(tmp_path)
    saving.set_model(model)
    saving.on_epoch_end(0)
    found = read_tensors(tmp_path / "epoch_00001" / "training.safetensors")
    assert found["model/0"].dtype.name == model.variables[0].dtype
    assert saving.restore(restored) == 1
    same_arrays(state(restored), state(model))


def test_failed_save_keeps_the_last_checkpoint(saved, monkeypatch):
    model, folder = saved
    saving = TrainingCheckpoint(folder)
    saving.set_model(model)

    def full_disk(path, tensors):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full_disk)
    with pytest.raises(OSError, match="No space left"):
        saving.on_epoch_end(1)
    assert [entry.name for entry in folder.iterdir()] == ["epoch_00001"]
    assert saving.restore(compiled()) == 1


FULL_DISK = """
import errno, resource, signal, sys
import keras, numpy as np
from keras_deit.training import TrainingCheckpoint

directory, most_bytes = sys.argv[1:]
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(500)])
model.compile("adamw", "mse")
saving = TrainingCheckpoint(directory)
saving.set_model(model)
model.optimizer.build(model.trainable_variables)
saving.on_epoch_end(0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(most_bytes), int(most_bytes)))
try:
    saving.on_epoch_end(1)
except OSError as error:
    assert error.errno == errno.EFBIG, error
    print("refused", saving.restore(model))
"""


@pytest.mark.process
@pytest.mark.parametrize("most_bytes", [10, 5000])
def test_a_disk_that_fills_up_leaves_the_old_checkpoint(most_bytes, tmp_path):
    """HDF5 ended the whole process here, with a segmentation fault."""
    command = [sys.executable, "-c", FULL_DISK, tmp_path / "checkpoints", str(most_bytes)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (result.returncode, result.stdout) == (0, "refused 1\n"), result.stderr
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["epoch_00001"]


def test_without_checkpoint_training_starts_at_epoch_0(tmp_path):
    assert TrainingCheckpoint(tmp_path / "none").restore(compiled()) == 0


@pytest.mark.slow
def test_training_without_restore_replaces_the_old_checkpoint(tmp_path):
    for _ in range(2):
        # One model each: on JAX, Keras 3.15 cannot `fit` a model with EMA twice.
        fit(compiled(), TrainingCheckpoint(tmp_path), epochs=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["epoch_00001"]


def test_error_on_another_architecture(saved):
    model, other = saved[0], compiled(num_layers=2)
    with raises(
        f"The checkpoint {saved[1] / 'epoch_00001'} is of another architecture: it has "
        f"{len(model.variables)} variables and the model has {len(other.variables)}. The first "
        "shapes that differ are [8, 5] in the checkpoint and [2] in the model. Train with the "
        "original settings, or use another directory."
    ):
        TrainingCheckpoint(saved[1]).restore(other)


def test_error_on_another_optimizer(saved):
    """Keras warned that it skipped the optimizer, and the training went on from zero moments."""
    model = compiled()
    before = [keras.ops.convert_to_numpy(variable) for variable in model.variables]
    model.compile(keras.optimizers.SGD(0.1), "mse")
    with pytest.raises(
        ValueError,
        match=r"epoch_00001 is of another optimizer: it has \d+ variables and the optimizer has 2\. "
        r"The first shapes that differ are \[96, 8\] in the checkpoint and none in the "
        r"optimizer\. Train with the original settings, or use another directory\.",
    ):
        TrainingCheckpoint(saved[1]).restore(model)
    same_arrays(before, model.variables)


def test_error_on_a_checkpoint_of_an_older_version(tmp_path):
    folder = tmp_path / "epoch_00003"
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    (folder / "training.weights.h5").touch()
    with raises(
        f"The checkpoint {folder} is of an older version of keras_deit, which wrote "
        "training.weights.h5. Finish the training with that version, or remove the checkpoint to "
        "train from the start."
    ):
        TrainingCheckpoint(tmp_path).restore(compiled())


@pytest.mark.parametrize("damage", ["half", "one bit", "no tensors", "state", "no seeds", "list"])
def test_error_on_damaged_files(saved, tmp_path, damage):
    shutil.copytree(saved[1], tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "epoch_00001"
    tensors, state = folder / "training.safetensors", folder / "state.json"
    content = bytearray(tensors.read_bytes())
    if damage == "half":
        tensors.write_bytes(content[: len(content) // 2])
    elif damage == "one bit":
        content[-5] ^= 1
        tensors.write_bytes(content)
    elif damage == "no tensors":
        tensors.unlink()
    else:
        damaged = {"state": "{", "no seeds": json.dumps({"sha256": ""}), "list": "[]"}
        state.write_text(damaged[damage])
    with pytest.raises(
        ValueError,
        match=re.escape(f"The checkpoint {folder} is damaged. Remove it to train from the start. "),
    ):
        TrainingCheckpoint(tmp_path).restore(compiled())


def test_errors_on_directory(tmp_path):
    with raises("`directory` must be the path of a directory. Received: directory=3"):
        TrainingCheckpoint(3)
    file = tmp_path / "file"
    file.touch()
    with raises(
        "`directory` must be the path of a directory, but is a file. Use another path. "
        f"Received: directory={str(file)!r}"
    ):
        TrainingCheckpoint(str(file))
