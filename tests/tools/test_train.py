"""tools/train.py, run in the process of the tests unless one is killed."""

import csv
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from keras_deit.models import DeiTImageClassifier
from keras_deit.presets import imagenet_synsets, read_tensors
from tests.scripts import ROOT, load_script, run_script, set_flags
from tests.tools.conftest import flags

pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def train():
    return load_script("tools/train.py")


def run(train, given, output, **overrides):
    run_script(train, **flags(given, output, **overrides))
    return output


def states(output, epoch=3):
    """All arrays of the checkpoint: weights, optimizer state, averages and seeds."""
    return read_tensors(output / "checkpoints" / f"epoch_{epoch:05d}" / "training.safetensors")


@pytest.mark.backend
@pytest.mark.process
@pytest.mark.parametrize(
    "recipe, reduction",  # one learning rate; and one of the head's own
    [("deit", {"keep_rate": 0.5}), ("new_classes", {"num_merged_tokens": 1})],
)
def test_killed_training_resumes_with_the_same_result(train, given, tmp_path, recipe, reduction):
    taught = {"teacher": str(given / "teacher.keras"), "recipe": recipe, "learning_rate": 0.05}
    taught |= reduction
    expected = states(run(train, given, tmp_path / "unbroken", **taught))

    output = tmp_path / "killed"
    arguments = [f"--{name}={value}" for name, value in flags(given, output, **taught).items()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, ROOT / "tools" / "train.py", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 300
    while not (output / "checkpoints" / "epoch_00001").exists() and time.time() < deadline:
        assert process.poll() is None, "the training ended too early"
        time.sleep(0.005)
    assert (output / "checkpoints" / "epoch_00001").exists()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (output / "checkpoints" / "epoch_00003").exists()

    resumed = states(run(train, given, output, **taught))
    assert resumed.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)
    with open(output / "log.csv", newline="") as stream:
        assert {row["epoch"] for row in csv.DictReader(stream)} == {"1", "2", "3"}
    backbone = DeiTImageClassifier.from_preset(output / "best").backbone
    assert reduction.items() <= backbone.get_config().items()


@pytest.mark.backend
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blocks", "cosub"])
def test_blocks_and_cosub_resume_with_the_same_result(train, given, tmp_path, monkeypatch, kind):
    if kind == "cosub":
        chosen = {"cosub": True, "recipe": "deit3_base"}
        logged = {"label_loss", "cosub_loss"}
    else:
        teacher = DeiTImageClassifier.from_preset(given / "tiny", num_classes=2)
        teacher.save_to_preset(tmp_path / "teacher")
        blocks = "features:0:-1,relations:-1:0:0.5,attention:1:1"
        chosen = {"teacher": str(tmp_path / "teacher"), "block_distillation": blocks}
        logged = {"feature_distillation_loss_block_0", "attention_distillation_loss_block_1"}
    expected = states(run(train, given, tmp_path / "unbroken", epochs=2, **chosen), 2)
    save = train.TrainingCheckpoint.on_epoch_end

    def save_and_stop(checkpoint, epoch, logs=None):
        save(checkpoint, epoch, logs)
        raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(train.TrainingCheckpoint, "on_epoch_end", save_and_stop)
        run(train, given, tmp_path / "broken", epochs=2, **chosen)
    resumed = states(run(train, given, tmp_path / "broken", epochs=2, **chosen), 2)
    assert resumed.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)
    with open(tmp_path / "broken" / "log.csv", newline="") as stream:
        assert logged <= set(next(csv.reader(stream)))


@pytest.mark.slow
def test_output(train, given, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(given))
    home = {"data": "~/photos", "preset": "~/tiny"}
    output = run(
        train, given, tmp_path / "run", recipe="deit3_small_fine_tune_384", image_size=48, **home
    )
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((output / "tensorboard" / "train").glob("events.*"))
    best = DeiTImageClassifier.from_preset(output / "best")
    assert best.labels == ["cat", "dog"]
    assert best.backbone.image_shape == (48, 48, 3)
    assert best.preprocessor.image_size == (48, 48)
    with open(output / "log.csv", newline="") as stream:
        accuracies = [float(row["val_accuracy"]) for row in csv.DictReader(stream)]
    assert json.loads((output / "best.json").read_text())["accuracy"] == max(accuracies)
    # The saved weights are the validated ones: the moving average.
    images, labels = [], []
    for label, name in enumerate(best.labels):
        for file in sorted((given / "photos" / "val" / name).iterdir()):
            images.append(best.preprocessor(keras.utils.img_to_array(keras.utils.load_img(file))))
            labels.append(label)
    correct = keras.ops.convert_to_numpy(best(keras.ops.stack(images))).argmax(-1) == np.array(
        labels
    )
    assert correct.mean() == pytest.approx(max(accuracies))


def chosen(train, names=("cat", "dog"), **given):
    set_flags(train, data="", output="", **given)
    recipe = train.choose_recipe(train.FLAGS, names)
    return next(name for name, known in train.RECIPES.items() if known is recipe)


def test_default_recipe(train, given):
    nano = "deit_nano_distilled_patch4_32_digits"
    digits = tuple("0123456789")
    assert chosen(train, digits, preset=nano) == "deit3_base_fine_tune_224"
    assert chosen(train, digits[:9], preset=nano) == "new_classes"
    assert chosen(train, tuple("abcdefghij"), preset=nano) == "new_classes"
    assert chosen(train, preset=str(given / "tiny")) == "new_classes"
    assert chosen(train, digits, preset=nano, load_weights=False) == "deit"
    assert chosen(train, digits[:9], preset=nano, recipe="deit3_small") == "deit3_small"
    synsets = imagenet_synsets()
    assert chosen(train, synsets, preset="deit_tiny_patch16_224") == "deit3_base_fine_tune_224"
    assert chosen(train, synsets, preset=nano) == "new_classes"


def test_learning_rate_flag(train):
    set_flags(train, data="", output="", preset="", recipe="deit", learning_rate=0.25)
    assert train.choose_recipe(train.FLAGS, ()).learning_rate == 0.25


@pytest.mark.parametrize(
    ("num_images", "num_shares", "asked", "expected"),
    [
        (187, 1, None, 16),
        (187, 6, None, 12),
        (20, 8, None, 8),
        (187, 1, 50, 50),
        (10**6, 8, None, 1024),
    ],
)
def test_default_batch_size(train, num_images, num_shares, asked, expected):
    set_flags(
        train, data="", preset="", output="", **({} if asked is None else {"batch_size": asked})
    )
    recipe = train.RECIPES["deit"]
    schedule = train.choose_schedule(train.FLAGS, recipe, num_images, num_shares)
    assert schedule.batch_size == expected
    assert schedule.steps_per_epoch == num_images // expected


@pytest.mark.backend
@pytest.mark.slow
def test_defaults_learn_new_classes_of_a_small_folder(train, tmp_path):
    """The default used to be a recipe whose learning rate was too low for a new head: the accuracy
    stayed at chance.
    """
    rng = np.random.default_rng(0)
    for part, count in (("train", 16), ("val", 8)):
        for label, axis in (("columns", 0), ("rows", 1)):  # stripes of random brightness
            (tmp_path / "photos" / part / label).mkdir(parents=True)
            for index in range(count):
                image = np.broadcast_to(
                    rng.integers(0, 256, (1, 8) if axis == 0 else (8, 1)), (8, 8)
                )[..., None]
                keras.utils.save_img(
                    tmp_path / "photos" / part / label / f"{index}.png", image, scale=False
                )
    jit = "auto" if keras.backend.backend() == "jax" else "off"
    nano = "deit_nano_distilled_patch4_32_digits"
    run_script(
        train, data=tmp_path / "photos", preset=nano, output=tmp_path / "run", epochs=8, jit=jit
    )
    assert json.loads((tmp_path / "run" / "best.json").read_text())["accuracy"] >= 0.9


def refusal(train, given, output, **overrides):
    with pytest.raises(SystemExit) as error:
        run(train, given, output, **overrides)
    return str(error.value)


REFUSED = {
    "--lora_rank 4: it needs --tune lora. Received: --tune all": {"lora_rank": 4},
    "--lora_targets ['qkv']: it needs --tune lora. Received: --tune bias": {
        "lora_targets": "qkv",
        "tune": "bias",
    },
    "--freeze_blocks 1: it needs blocks that train: use --tune all, attention or bias. "
    "Received: --tune head": {"freeze_blocks": 1, "tune": "head"},
    "--layer_decay 0.5: it needs blocks that train. Received: --tune head": {
        "layer_decay": 0.5,
        "tune": "head",
    },
    "--tune lora: it keeps trained weights, so it needs some. Received: --noload_weights": {
        "tune": "lora",
        "load_weights": False,
    },
    "--ema_warmup True: it needs the moving average. Received: --noema": {
        "ema_warmup": True,
        "ema": False,
    },
    "--layer_decay 0.0: `layer_decay` must be a number in (0, 1]; use 1.0 for no decay. "
    "Received: layer_decay=0.0": {"layer_decay": 0.0},
    "--freeze_blocks 3: `num_blocks` must be at most the number of blocks, 2. "
    "Received: num_blocks=3": {"freeze_blocks": 3},
    "--lora_targets value: `targets` must be one or several of 'attention/qkv', "
    "'attention/projection', 'mlp/intermediate', 'mlp/projection'. Received: targets=['value']": {
        "lora_targets": "value",
        "tune": "lora",
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_trains_is_refused_where_flags_contradict(message, train, given, tmp_path):
    assert refusal(train, given, tmp_path / "a", **REFUSED[message]) == f"Not trained. {message}"
    assert not (tmp_path / "a").exists()


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise InterruptedError


@pytest.mark.backend
@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"tune": "lora", "lora_rank": 2, "lora_targets": "qkv,mlp/projection"},
        {"tune": "attention", "freeze_blocks": 1, "layer_decay": 0.5, "ema_warmup": True},
    ],
)
def test_a_part_of_the_model_trains_and_resumes(changes, train, given, tmp_path, monkeypatch):
    changes = {"recipe": "new_classes", "learning_rate": 0.01, **changes}
    expected = states(run(train, given, tmp_path / "unbroken", **changes))
    output = tmp_path / "stopped"
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        callbacks = train.callbacks
        patch.setattr(train, "callbacks", lambda *arguments: [*callbacks(*arguments), Stop()])
        run(train, given, output, **changes)
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["epoch_00002"]
    resumed = states(run(train, given, output, **changes))
    for name, array in expected.items():
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)

    best, start = (
        DeiTImageClassifier.from_preset(path) for path in (output / "best", given / "tiny")
    )
    changed = {
        new.path
        for new, old in zip(best.backbone.weights, start.backbone.weights, strict=True)
        if not np.array_equal(new, old)
    }
    attention = {"attention/qkv/kernel", "attention/projection/kernel"}
    if changes["tune"] == "lora":
        layers = {"attention/qkv/kernel", "mlp/projection/kernel"}
        assert changed <= {f"block_{index}/{layer}" for index in range(2) for layer in layers}
        start = DeiTImageClassifier.from_preset(given / "tiny", num_classes=2)
        start.load_lora_weights(output / "best_lora.safetensors")
        x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(start(x)), keras.ops.convert_to_numpy(best(x)), atol=1e-5
        )
    else:
        biases = {name.replace("kernel", "bias") for name in attention}
        assert changed <= {f"block_1/{name}" for name in attention | biases}
        assert best.trainable_variables  # and what was frozen is frozen in the preset
        assert {v.path for v in best.backbone.trainable_variables} == {
            f"block_1/{name}" for name in attention | biases
        }
    assert changed


@pytest.mark.backend
@pytest.mark.slow
def test_images_that_grow(train, given, tmp_path):
    output = run(train, given, tmp_path / "run", epochs=2, image_sizes="16,48")
    best = DeiTImageClassifier.from_preset(output / "best")
    assert best.backbone.image_shape == (None, None, 3)
    assert best.backbone.position_grid_size == (3, 3)
    assert best.preprocessor.image_size == (48, 48)
    pinned = DeiTImageClassifier.from_preset(output / "best", image_shape=(48, 48, 3))
    photos = sorted(str(file) for file in (given / "photos" / "val").rglob("*.png"))
    np.testing.assert_allclose(
        pinned.predict(photos, verbose=0), best.predict(photos, verbose=0), atol=1e-5
    )


def test_relations_have_heads_that_divide_both_widths(train):
    from training.distillation import count_relation_heads

    def backbone(num_heads, hidden_dim):
        return DeiTImageClassifier.from_preset(
            "deit_nano_distilled_patch4_32_digits",
            load_weights=False,
            num_layers=1,
            num_heads=num_heads,
            hidden_dim=hidden_dim,
        )

    student = backbone(6, 96)
    for teacher, expected in ((backbone(3, 96), 6), (backbone(4, 128), 2), (backbone(5, 25), 1)):
        after_resizing = keras.Sequential([keras.Input((32, 32, 1)), teacher])
        assert count_relation_heads(student.backbone, after_resizing) == expected


def test_wrong_image_sizes(train, given, tmp_path):
    def why(**wrong):
        return refusal(train, given, tmp_path / "a", **wrong).removeprefix("Not trained. ")

    for sizes in ("32", "48,32", "32,32", "16,x", "0,16", "16,-32", "16,,32"):
        assert why(image_sizes=sizes) == (
            "--image_sizes must be two or more sizes in pixels that grow, such as 128,176,224. "
            f"Received: {sizes}"
        )
    assert why(image_sizes="16,32", image_size=32) == (
        "--image_sizes ends at its last size. Use it without --image_size. Received: --image_sizes "
        "16,32 --image_size 32"
    )
    assert why(image_sizes="16,33").endswith(
        "--image_sizes must be a multiple of the preset's patch size, 16 x 16 pixels. Received: 33"
    )
    assert why(image_sizes="16,32,48", epochs=2) == (
        "--image_sizes must have at most one size for each of the 2 epochs. Received: 16,32,48"
    )


@pytest.mark.slow
def test_resuming_needs_the_same_settings(train, given, tmp_path):
    output = run(train, given, tmp_path / "run", epochs=1)
    assert refusal(train, given, output, epochs=1, batch_size=2) == (
        f"Not trained. --output {output} contains a training with other settings. Use the same "
        "settings to resume it, or another --output. Received: --batch_size was 4 and is 2"
    )


def test_unreadable_images(train, given, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(given / "photos", photos)
    broken = photos / "train" / "cat" / "0.png"
    broken.write_text("no image")
    why = (
        f"Not trained. --data {photos}: 1 images in {photos / 'train'} cannot be read. Replace or "
        f"remove them, or skip them with --skip_broken_images. {broken} is not an image"
    )
    assert why in refusal(train, given, tmp_path / "a", data=str(photos))
    set_flags(train, data=str(photos), preset="", output="", skip_broken_images=True)
    training, validation = train.open_images(train.FLAGS, train.start_devices("none"))
    assert (len(training), len(validation)) == (19, 6)
    shutil.rmtree(photos / "val" / "dog")
    assert (
        f"Not trained. --data {photos}: The training and validation images must have the same "
        "classes. Received: cat, dog and cat"
        in refusal(train, given, tmp_path / "a", data=str(photos), skip_broken_images=True)
    )


@pytest.mark.backend
def test_errors_name_the_flag(train, given, tmp_path):
    assert (
        "--batch_size must be a multiple of the number of devices, 1, and at most the number of "
        "training images, 20. Received: 21" in refusal(train, given, tmp_path / "a", batch_size=21)
    )
    # All with the same output: a failed start does not block the next.
    nowhere = tmp_path / "none"
    assert f"Not trained. --data {nowhere}: The folder {nowhere / 'train'} does not" in refusal(
        train, given, tmp_path / "a", data=str(nowhere)
    )
    assert "--preset nothing: A preset handle is" in refusal(
        train, given, tmp_path / "a", preset="nothing"
    )
    assert "--teacher nothing: A preset handle is" in refusal(
        train, given, tmp_path / "a", teacher="nothing"
    )
    assert "--dtype_policy float17: " in refusal(
        train, given, tmp_path / "a", dtype_policy="float17"
    )
    both = refusal(train, given, tmp_path / "a", num_merged_tokens=1, keep_rate=0.5)
    assert "Tokens are either merged or selected. Use `num_merged_tokens=0` or `keep_rate" in both
    why = "--image_size must be a multiple of the preset's patch size, 16 x 16 pixels. Received: 33"
    assert why in refusal(train, given, tmp_path / "a", image_size=33)
    assert (
        "To train on several machines, use --distribution data_parallel with KERAS_BACKEND=jax."
        in refusal(train, given, tmp_path / "c", distribution="multi_worker_mirrored")
    )
    backend = keras.backend.backend()
    other, wanted = (
        ("mirrored", "tensorflow") if backend != "tensorflow" else ("data_parallel", "jax")
    )
    assert refusal(train, given, tmp_path / "d", distribution=other) == (
        f"Not trained. --distribution {other} needs KERAS_BACKEND={wanted}. Received: "
        f"KERAS_BACKEND={backend}"
    )
    blocks = "features:-1:-1"
    assert refusal(train, given, tmp_path / "a", block_distillation=blocks) == (
        "Not trained. --block_distillation needs --teacher. Received: --block_distillation "
        "features:-1:-1"
    )
    taught = {"teacher": str(given / "teacher.keras")}
    for text in ("tokens:0:0", "features:0", "features:0:last", "features:0:0:1:1"):
        assert refusal(train, given, tmp_path / "a", **taught, block_distillation=text) == (
            "Not trained. --block_distillation must be a list of KIND:STUDENT_BLOCK:TEACHER_BLOCK "
            "or KIND:STUDENT_BLOCK:TEACHER_BLOCK:WEIGHT, with KIND one of attention, features, "
            f"relations. Received: {text}"
        )
    assert "--block_distillation features:0:0:-1: `weight` must be a number above 0." in refusal(
        train, given, tmp_path / "a", **taught, block_distillation="features:0:0:-1"
    )
    assert "`block_distillation` needs a `DeiTImageClassifier` as teacher" in refusal(
        train, given, tmp_path / "a", **taught, block_distillation=blocks
    )
    assert "--cosub trains without a teacher." in refusal(
        train, given, tmp_path / "a", **taught, cosub=True
    )
    assert refusal(train, given, tmp_path / "a", recipe="deit_transfer", cosub=True) == (
        "Not trained. --cosub needs a recipe with drop path, such as --recipe deit. Received: one "
        "with drop_path_rate=0.0"
    )
    for shape, classes, message in (
        ((32, 32, 3), 3, "The teacher must return logits (batch, 2)"),
        (
            (64, 64, 3),
            2,
            "The teacher takes images of shape (64, 64, 3), but the student's have shape "
            "(32, 32, 3).",
        ),
    ):
        teacher = keras.Sequential(
            [keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(classes)]
        )
        teacher.save(tmp_path / "other.keras")
        assert message in refusal(
            train, given, tmp_path / "e", teacher=str(tmp_path / "other.keras")
        )


# Keras' CSVLogger does not close its file after an error.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_infinite_loss_ends_the_training_and_is_not_saved(train, given, tmp_path):
    with pytest.raises(
        FloatingPointError,
        match=r"The loss is not finite\. Start again with a lower --learning_rate",
    ):
        run(train, given, tmp_path / "run", learning_rate=1e30)
    gc.collect()
    assert not (tmp_path / "run" / "best").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("momentum", "steps", "accumulated", "expected"),
    [(None, 1000, 1, 0.99), (None, 10**9, 1, 0.99996), (0.5, 9, 1, 0.5), (0.25, 9, 2, 0.5)],
)
def test_the_average_spans_a_tenth_of_the_training_at_most(
    train, momentum, steps, accumulated, expected
):
    from training.model import Schedule, ema_momentum

    given = {} if momentum is None else {"ema_momentum": momentum}
    set_flags(train, data="", preset="", output="", **given)
    schedule = Schedule(1, steps, 4, accumulated)
    found = ema_momentum(train.FLAGS, train.RECIPES["deit"], schedule)
    assert found == pytest.approx(expected)


@pytest.mark.slow
def test_tensorflow_datasets(train, given, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    tfds = pytest.importorskip("tensorflow_datasets")
    rng = np.random.default_rng(0)

    class TwoColors(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["dim", "lit"]),
            }
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(12), "test": self._generate_examples(6)}

        def _generate_examples(self, count=0):
            for index in range(count):
                level = 128 * (index % 2)
                yield (
                    index,
                    {
                        "image": rng.integers(level, level + 128, (20, 25, 3)).astype("uint8"),
                        "label": index % 2,
                    },
                )

    output = run(train, given, tmp_path / "run", data="tfds:two_colors", epochs=1)
    assert DeiTImageClassifier.from_preset(output / "best").labels == ["dim", "lit"]
    with open(output / "log.csv", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert np.isfinite(float(row["val_loss"]))
