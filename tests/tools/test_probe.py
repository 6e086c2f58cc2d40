"""tools/probe.py: features on disk, and what is made of them."""

import errno
import json
import shutil
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from keras_deit.models import DeiTImageClassifier
from keras_deit.presets import read_tensors
from tests.helpers import randomize, tiny_classifier
from tests.scripts import ROOT, load_script, run_script

tool = load_script("tools/probe.py")
caches = sys.modules["probing.features"]
methods = sys.modules["probing.methods"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A distilled classifier of 12 x 32 pixels with two tokens of 8 features."""
    folder = tmp_path_factory.mktemp("tiny")
    randomize(tiny_classifier({"num_layers": 1}), np.random.default_rng(1)).save_to_preset(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    """Ten images to train on, and seven to test on, of two classes."""
    rng = np.random.default_rng(0)
    for part, counts in (("train", (6, 4)), ("val", (3, 4))):
        for label, count in zip(("cat", "dog"), counts):
            (tmp_path / "photos" / part / label).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (20, 30 + index, 3), "uint8")
                Image.fromarray(pixels).save(tmp_path / "photos" / part / label / f"{index}.png")
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(caches, "IMAGES_PER_SHARD", 3)


def run(photos, preset, output, **flags):
    given = {"data": photos, "preset": preset, "output": output, "shots": "1,3", "batch_size": 2}
    run_script(tool, **{**given, **flags})
    return json.loads((output / "probe.json").read_text())


def refusal(*arguments, **flags):
    with pytest.raises(SystemExit) as error:
        run(*arguments, **flags)
    return str(error.value)


def saved_features(output, part):
    shards = [read_tensors(file) for file in sorted(output.glob(f"features/{part}_*"))]
    return [np.concatenate([shard[name] for shard in shards]) for name in ("features", "labels")]


@pytest.mark.parametrize(
    "pooling",
    [
        pytest.param(None, marks=pytest.mark.backend),
        *(
            pytest.param(pooling, marks=pytest.mark.slow)
            for pooling in ("token", "mean", "token_and_mean")
        ),
    ],
)
def test_features_are_what_a_head_reads(pooling, photos, tiny, tmp_path):
    flags = {} if pooling is None else {"pooling": pooling}
    results = run(photos, tiny, tmp_path / "run", **flags)
    assert (results["training_images"], results["validation_images"]) == (10, 7)
    classifier = DeiTImageClassifier.from_preset(tiny)
    for part, counts in (("train", (6, 4)), ("val", (3, 4))):
        features, labels = saved_features(tmp_path / "run", part)
        np.testing.assert_array_equal(labels, np.repeat([0, 1], counts))
        for file, found in zip(sorted((photos / part).glob("*/*")), features):
            image = classifier.preprocessor(np.array(Image.open(file))[None])
            tokens = keras.ops.convert_to_numpy(classifier.backbone(image))[0]
            expected = {
                None: tokens[:2].ravel(),  # class and distillation token
                "token": tokens[0],
                "mean": tokens[2:].mean(axis=0),
                "token_and_mean": np.concatenate([tokens[0], tokens[2:].mean(axis=0)]),
            }[pooling]
            # TensorFlow resizes for the program: a level between two may be rounded otherwise.
            np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.backend
@pytest.mark.slow
def test_channels_first_has_the_same_features(photos, tiny, tmp_path):
    classifier = DeiTImageClassifier.from_preset(tiny, data_format="channels_first")
    classifier.save_to_preset(tmp_path / "first")
    run(photos, tiny, tmp_path / "last_run")
    run(photos, tmp_path / "first", tmp_path / "first_run")
    expected, found = (saved_features(tmp_path / name, "val") for name in ("last_run", "first_run"))
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_array_equal(found[1], expected[1])


def test_results_of_each_method(photos, tiny, tmp_path, capsys):
    results = run(photos, tiny, tmp_path / "run")["results"]
    assert [result["method"] for result in results] == [
        "k-NN",
        "k-NN",
        "linear probe",
        "few-shot",
        "few-shot",
    ]
    assert [result.get("images_per_class") for result in results[3:]] == [1, 3]
    for result in results[3:]:
        assert len(result["draws"]) == tool.NUM_DRAWS
        assert result["accuracy"] == pytest.approx(np.mean(result["draws"]))
        assert result["standard_deviation"] == pytest.approx(np.std(result["draws"], ddof=1))
    printed = capsys.readouterr().out
    assert f"few-shot       3 per class      {results[4]['accuracy']:6.1%} ± " in printed
    training, test = (saved_features(tmp_path / "run", part) for part in ("train", "val"))
    assert results[0]["accuracy"] == methods.nearest_neighbors(training, test, 10)


@pytest.mark.slow
def test_a_stopped_run_resumes_after_its_last_shard(photos, tiny, tmp_path, monkeypatch, capsys):
    expected = run(photos, tiny, tmp_path / "unbroken")
    add = keras.utils.Progbar.add

    def stop(self, count, values=None):
        add(self, count, values)
        if self.target == 10 and self._seen_so_far == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(keras.utils.Progbar, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            run(photos, tiny, tmp_path / "run")
    features = tmp_path / "run" / "features"
    assert sorted(file.name for file in features.iterdir()) == [
        "settings.json",
        "train_00000.safetensors",
        "train_00001.safetensors",
    ]
    times = {file: file.stat().st_mtime_ns for file in features.iterdir()}
    capsys.readouterr()
    assert run(photos, tiny, tmp_path / "run") == expected
    assert "train: features of 6 of 10 images are there" in capsys.readouterr().out
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())
    # All features are there: the model does not run.
    monkeypatch.setattr(keras.Model, "predict_on_batch", None)
    assert run(photos, tiny, tmp_path / "run") == expected


@pytest.mark.slow
def test_a_damaged_shard_is_named_and_computed_again(photos, tiny, tmp_path, capsys):
    expected = run(photos, tiny, tmp_path / "run")
    file = tmp_path / "run" / "features" / "train_00001.safetensors"
    good = file.read_bytes()
    for damaged in (good[:-9], b"no tensors", good[:-1] + bytes([good[-1] ^ 1])):
        file.write_bytes(damaged)
        message = refusal(photos, tiny, tmp_path / "run")
        assert message == (
            f"Not probed. --output {tmp_path / 'run'}: The features in {file} are damaged. Delete "
            "this file and start again with the same flags; only its images are computed again."
        )
    file.unlink()
    capsys.readouterr()
    assert run(photos, tiny, tmp_path / "run") == expected
    assert "train: features of 7 of 10 images are there" in capsys.readouterr().out
    settings = tmp_path / "run" / "features" / "settings.json"
    settings.write_text("[]")
    assert f"{settings} is damaged or of another version. Delete the folder" in refusal(
        photos, tiny, tmp_path / "run"
    )


@pytest.mark.slow
def test_features_of_something_else_are_refused(photos, tiny, tmp_path):
    preset = shutil.copytree(tiny, tmp_path / "preset")
    run(photos, preset, tmp_path / "run")
    assert refusal(photos, preset, tmp_path / "run", pooling="mean").endswith(
        "has features of another model, of other images or with other settings. Use the same "
        "flags, or another --output. Received: pooling was 'token' and is 'mean'; "
        "use_distillation_head was True and is False"
    )
    run(photos, preset, tmp_path / "run", shots="2")  # the same features
    classifier = DeiTImageClassifier.from_preset(preset)
    classifier.backbone.final_norm.beta.assign(np.ones(8))
    classifier.save_to_preset(preset)
    assert "Received: weights was '" in refusal(photos, preset, tmp_path / "run")
    (photos / "val" / "cat" / "0.png").unlink()
    assert "val was 'folder:" in refusal(photos, tiny, tmp_path / "run")


@pytest.mark.parametrize(
    ("backbone", "pooling", "received"),
    [
        ({}, "mean", "pooling was 'token' and is 'mean'"),
        ({"num_merged_tokens": 1}, "token", "num_merged_tokens was 0 and is 1"),
        ({"num_heads": 4}, "token", "num_heads was 2 and is 4"),
        ({"dropout_rate": 0.1}, "token", None),  # has the same features
    ],
)
def test_the_same_weights_in_another_model(backbone, pooling, received, tmp_path):
    """Their features were taken for those of the first model."""

    def save(pooling, **backbone):
        classifier = tiny_classifier(
            {"num_layers": 1, **backbone}, pooling=pooling, use_distillation_head=False
        )
        randomize(classifier, np.random.default_rng(1)).save_to_preset(tmp_path / "preset")

    def find():
        classifier = caches.load_classifier(tmp_path / "preset")
        caches.FeatureCache(tmp_path / "features", caches.model_settings(classifier))

    save("token")
    find()
    save(pooling, **backbone)
    if received is None:
        find()
    else:
        with pytest.raises(ValueError) as error:
            find()
        assert str(error.value).endswith(f"Received: {received}")


def test_errors_name_the_flag(photos, tiny, tmp_path, monkeypatch):
    output = tmp_path / "run"
    assert refusal(photos, tiny, output, shots="1,5") == (
        "Not probed. --shots 5 needs 5 training images of every class. Add images, or use lower "
        "--shots. Received: dog (4)"
    )
    for shots in ("0", "1,two", ""):
        assert refusal(photos, tiny, output, shots=shots) == (
            f"Not probed. --shots must be integers above 0, such as 1,5,10. Received: {shots}"
        )
    assert "--preset nothing: A preset handle is" in refusal(photos, "nothing", output)
    assert f"--data {tmp_path / 'no'}: The folder" in refusal(tmp_path / "no", tiny, output)
    assert "--dtype_policy float17: " in refusal(photos, tiny, output, dtype_policy="float17")
    tiny_classifier(preprocessor=None).save_to_preset(tmp_path / "unprepared")
    assert "The preset has no preprocessor." in refusal(photos, tmp_path / "unprepared", output)
    (tmp_path / "file").touch()
    assert "Expected a folder, and this is a file." in refusal(photos, tiny, tmp_path / "file")
    assert not output.exists()
    (photos / "train" / "dog" / "0.png").write_text("no image")
    assert "--skip_broken_images" in refusal(photos, tiny, output)
    run(photos, tiny, output, skip_broken_images=True)
    assert len(saved_features(output, "train")[0]) == 9
    for part in ("train", "val"):
        shutil.rmtree(photos / part / "dog")
    assert "needs at least two classes. Received: cat" in refusal(photos, tiny, output)


def test_the_page_has_the_columns_that_are_written():
    """The program scores on `val`; the page said that these were test images."""
    header = load_script("tools/fine_tune_table.py").probe_table([])
    assert "| `val` images |" in header and "test images" not in header
    assert header in (ROOT / "docs" / "probe.md").read_text()


def test_labels_that_are_no_classes(photos, tiny, tmp_path):
    """The test split of some TensorFlow datasets has the label -1."""
    classifier = caches.load_classifier(tiny)
    model = caches.feature_model(classifier)
    images = tool.open_images.__globals__["ImageFolder"].open(photos / "val")
    images = type(images)(images.directory, images.files, (0, 1, 0, 0, 0, -1, 0), ("cat", "dog"))
    cache = caches.FeatureCache(tmp_path / "run", {})
    with pytest.raises(ValueError, match="must be from 0 to 1.*Received: -1"):
        cache.features("val", images, model, classifier.preprocessor, 2)
    # What was finished before is kept.
    assert (tmp_path / "run" / "val_00000.safetensors").exists()


def test_an_image_that_breaks_after_the_check(photos, tiny, tmp_path, monkeypatch):
    open_images = tool.open_images

    def open_and_break(*arguments):
        found = open_images(*arguments)
        (photos / "train" / "dog" / "3.png").write_text("no image")
        return found

    monkeypatch.setattr(tool, "open_images", open_and_break)
    assert "3.png is not an image that Pillow can read" in refusal(photos, tiny, tmp_path / "run")


def test_features_that_are_not_numbers(photos, tmp_path, rng):
    classifier = randomize(tiny_classifier(), rng)
    classifier.backbone.final_norm.beta.assign(np.full(8, 3e38))
    classifier.backbone.final_norm.gamma.assign(np.full(8, 3e38))
    classifier.save_to_preset(tmp_path / "huge")
    assert "The features are not finite. Use another --dtype_policy." in refusal(
        photos, tmp_path / "huge", tmp_path / "run"
    )
    assert not list((tmp_path / "run" / "features").glob("*.safetensors"))


@pytest.mark.slow
def test_a_full_disk(photos, tiny, tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(caches, "write_tensors", no_space)
        assert refusal(photos, tiny, tmp_path / "run") == (
            "Not probed. [Errno 28] No space left on device"
        )
    run(photos, tiny, tmp_path / "run")


@pytest.fixture
def data():
    """Noisy features of three classes, in float64: 40 to train on, 60 to test on."""
    rng = np.random.default_rng(3)
    labels = np.arange(100) % 3
    features = rng.normal(size=(3, 7))[labels] + 1.2 * rng.normal(size=(100, 7)) + 2
    return (features[:40], labels[:40]), (features[40:], labels[40:])


@pytest.mark.parametrize("k", [5, 100])
def test_nearest_neighbors_by_the_formula(data, k):
    (x, y), (queries, labels) = data
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (x, queries)]
    similarity = unit[1] @ unit[0].T
    votes = np.zeros((60, 3))
    for row, order in enumerate(np.argsort(-similarity, axis=1)[:, :k]):
        for index in order:
            votes[row, y[index]] += np.exp(similarity[row, index] / 0.07)
    expected = np.mean(votes.argmax(axis=1) == labels)
    assert 0.4 < expected < 1
    assert methods.nearest_neighbors(*data, k) == pytest.approx(expected)


def test_few_shot_by_the_formula(data):
    """With all images of each class, every draw is the same ridge regression."""
    (x, y), test = data
    x, y = x[:39], y[:39]  # 13 of each class
    mean, std = x.mean(axis=0), x.std(axis=0)
    targets = 2 * np.eye(3)[y] - 1
    inputs = (x - mean) / std  # has the mean 0, so that the bias is the mean of the targets
    weights = np.linalg.solve(inputs.T @ inputs + 0.7 * np.eye(7), inputs.T @ targets)
    answers = ((test[0] - mean) / std @ weights + targets.mean(axis=0)).argmax(axis=1)
    expected = np.mean(answers == test[1])
    assert 0.4 < expected < 1
    assert methods.few_shot((x, y), test, 13, 2, seed=0) == pytest.approx([expected] * 2)
    draws = methods.few_shot((x, y), test, 2, 5, seed=0)
    assert len(set(draws)) > 1
    assert draws == methods.few_shot((x, y), test, 2, 5, seed=0)


def test_linear_probe_is_at_the_minimum(data):
    """The gradient of sum(cross-entropy) + |W|^2 / (2 C) is 0."""
    (x, y), test = data
    pipeline = methods.best_logistic_regression(data[0], test)
    found = pipeline[-1]
    scores = {}
    for C in methods.INVERSE_PENALTIES:
        scores[C] = methods._logistic_regression(C).fit(x, y).score(*test)
    assert found.C == next(C for C in scores if scores[C] == max(scores.values()))
    inputs = (x - x.mean(axis=0)) / x.std(axis=0)
    logits = inputs @ found.coef_.T + found.intercept_
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    error = probabilities - np.eye(3)[y]
    gradient = error.T @ inputs + found.coef_ / found.C
    # L-BFGS stops at a gradient of 1e-4 of the mean.
    np.testing.assert_allclose(gradient / len(x), 0, atol=2e-4)
    np.testing.assert_allclose(error.mean(axis=0), 0, atol=2e-4)


def test_linear_probe_chooses_by_a_fifth_of_each_class(data):
    (x, y), test = data
    (_, kept), (_, held_out) = methods._split(x, y, seed=0)
    assert np.bincount(held_out).tolist() == [3, 3, 3]
    assert np.bincount(kept).tolist() == [11, 10, 10]
    accuracy, C = methods.linear_probe(data[0], test, seed=0)
    assert accuracy == methods._logistic_regression(C).fit(x, y).score(*test)
    (_, kept), (_, held_out) = methods._split(x[:4], np.array([0, 1, 1, 2]), seed=0)
    assert (kept.tolist(), held_out.tolist()) == ([0, 1, 2], [1])
