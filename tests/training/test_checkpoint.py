"""What a training needs to go on, whole or not at all."""

import json
import shutil

import keras
import numpy as np
import pytest

from keras_deit.training import TrainingCheckpoint
from tests.helpers import images, tiny_classifier

pytestmark = pytest.mark.backend


def compiled(num_layers=1):
    keras.utils.set_random_seed(0)
    model = tiny_classifier({"dropout_rate": 0.3, "num_layers": num_layers}, preprocessor=None)
    optimizer = keras.optimizers.AdamW(1e-2, use_ema=True, ema_momentum=0.9)
    # Compiling takes longer than this little training, but on JAX.
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
def test_the_rest_of_a_training_is_what_it_would_have_been(tmp_path):
    unbroken = compiled()
    fit(unbroken, epochs=3)
    killed, checkpoint = compiled(), TrainingCheckpoint(tmp_path / "checkpoints")
    with pytest.raises(KeyboardInterrupt):
        fit(killed, checkpoint, Kill(1), epochs=3)
    resumed = compiled()
    assert checkpoint.restore(resumed) == 1
    fit(resumed, checkpoint, epochs=3, initial_epoch=1)
    for weight, expected in zip(resumed.get_weights(), unbroken.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["epoch_00003"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model after an epoch, and the folder of its checkpoint."""
    folder, model = tmp_path_factory.mktemp("saved"), compiled()
    fit(model, TrainingCheckpoint(folder), epochs=1)
    return model, folder


def test_nothing_is_lost_when_saving_fails(saved, monkeypatch):
    model, folder = saved
    checkpoint = TrainingCheckpoint(folder)
    checkpoint.set_model(model)

    def full_disk(path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(model, "save_weights", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.on_epoch_end(1)
    assert [entry.name for entry in folder.iterdir()] == ["epoch_00001"]
    assert checkpoint.restore(compiled()) == 1


def test_a_new_training_starts_at_the_first_epoch(tmp_path):
    assert TrainingCheckpoint(tmp_path / "none").restore(compiled()) == 0


@pytest.mark.slow
def test_a_training_that_does_not_go_on_replaces_the_one_before(tmp_path):
    for _ in range(2):
        # A model each: with an average of the weights, Keras 3.15 cannot `fit` a model twice on
        # JAX.
        fit(compiled(), TrainingCheckpoint(tmp_path), epochs=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["epoch_00001"]


def test_another_architecture_is_refused(saved):
    with pytest.raises(
        ValueError,
        match=r"epoch_00001 is of another architecture\. Expected: .* weights\. Received: .* Go on with",
    ):
        TrainingCheckpoint(saved[1]).restore(compiled(num_layers=2))


@pytest.mark.parametrize("damage", ["weights", "state", "no seeds"])
def test_altered_files_are_named(saved, tmp_path, damage):
    shutil.copytree(saved[1], tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "epoch_00001"
    if damage == "weights":
        (folder / "training.weights.h5").write_bytes(b"no")
    elif damage == "state":
        (folder / "state.json").write_text("{")
    else:
        (folder / "state.json").write_text(json.dumps({"shapes": []}))
    with pytest.raises(
        ValueError, match=r"epoch_00001 cannot be read \(.*\)\. Remove the folder to start again"
    ):
        TrainingCheckpoint(tmp_path).restore(compiled())
