"""tools/soup.py."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from keras_deit.models import DeiTImageClassifier
from tests.helpers import randomize, tiny_backbone, tiny_classifier
from tests.scripts import load_script, run_script

pytestmark = pytest.mark.backend
pytest.importorskip("tensorflow")
tool = load_script("tools/soup.py")


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """Three classifiers. What the second predicts is the class of the images in `photos`."""
    folder = tmp_path_factory.mktemp("presets")
    for name in "abc":
        classifier = tiny_classifier({"num_layers": 1}, num_classes=2, labels=["dog", "cat"])
        randomize(classifier, np.random.default_rng(ord(name))).save_to_preset(folder / name)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 20, 30, 3), "uint8")
    classifier = DeiTImageClassifier.from_preset(folder / "b")
    answers = classifier.predict(images, verbose=0).argmax(axis=-1)
    assert len(set(answers)) == 2
    for number, (image, answer) in enumerate(zip(images, answers)):
        path = folder / "photos" / "val" / classifier.labels[answer] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def run(presets, output, names="abc", **flags):
    handles = ",".join(str(presets / name) for name in names)
    run_script(tool, presets=handles, output=output, **flags)


def refusal(*arguments, **flags):
    with pytest.raises(SystemExit) as error:
        run(*arguments, **flags)
    return str(error.value)


def test_uniform_soup(presets, tmp_path):
    run(presets, tmp_path / "soup")
    soup = DeiTImageClassifier.from_preset(tmp_path / "soup")
    assert soup.labels == ["dog", "cat"]
    ingredients = [DeiTImageClassifier.from_preset(presets / name) for name in "abc"]
    for found, *arrays in zip(soup.get_weights(), *(model.get_weights() for model in ingredients)):
        np.testing.assert_array_equal(
            found, np.mean(arrays, axis=0, dtype="float64").astype("float32")
        )


def test_greedy_soup(presets, tmp_path, capsys):
    """The second model is always right, so it is the best, and what is added is right as well."""
    run(presets, tmp_path / "soup", data=presets / "photos", batch_size=5)
    lines = capsys.readouterr().out.splitlines()
    assert f"averaged  100.00%  {presets / 'b'}" in lines
    soup = DeiTImageClassifier.from_preset(tmp_path / "soup")
    files = sorted((presets / "photos" / "val").glob("*/*.png"))
    answers = soup.predict([str(file) for file in files], verbose=0).argmax(axis=-1)
    assert [soup.labels[answer] for answer in answers] == [file.parent.name for file in files]
    others = {}
    for name in "ac":  # folders are in another order than the labels
        classifier = DeiTImageClassifier.from_preset(presets / name)
        found = classifier.predict([str(file) for file in files], verbose=0).argmax(axis=-1)
        hits = [soup.labels[i] == file.parent.name for i, file in zip(found, files)]
        others[name] = f"{np.mean(hits):7.2%}  {presets / name}"
    for name, words in others.items():
        assert any(line.endswith(words) for line in lines), (name, lines)


def test_nothing_is_overwritten(presets, tmp_path):
    output = tmp_path / "soup"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    assert refusal(presets, output) == (
        f"Not averaged. --output {output} exists already. Use another path, or remove it."
    )
    assert (output / "notes.txt").read_text() == "mine"


def test_an_output_that_cannot_be_written_is_refused_before_the_evaluation(
    presets, tmp_path, monkeypatch
):
    """The greedy soup was evaluated, and lost."""
    monkeypatch.setattr(tool, "load", None)
    monkeypatch.setattr(tool, "greedy_soup", None)
    (tmp_path / "file").touch()
    message = refusal(presets, tmp_path / "file" / "soup", data=presets / "photos")
    assert message.startswith(
        f"Not averaged. --output {tmp_path / 'file' / 'soup'}: The folder {tmp_path / 'file'} "
        "cannot be created or written. Use another path. "
    )
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "cannot be the current directory" in refusal(presets, ".", data=presets / "photos")


def test_flags_without_effect_and_a_model_that_is_listed_twice(presets, tmp_path):
    output = tmp_path / "soup"
    for flags in ({"batch_size": 64}, {"skip_broken_images": True}):
        assert refusal(presets, output, **flags) == (
            f"Not averaged. --{next(iter(flags))} is for the images of --data. Add --data, or "
            "leave it out."
        )
    (tmp_path / "link").symlink_to(presets / "a")
    for same in (f"{presets / 'a'}/", tmp_path / "link"):
        with pytest.raises(SystemExit) as error:
            run_script(tool, presets=f"{presets / 'a'},{same},{presets / 'b'}", output=output)
        assert str(error.value) == (
            "Not averaged. --presets must list two or more different models, separated by commas. "
            f"Received: {presets / 'a'},{same},{presets / 'b'}"
        )
    assert not output.exists()


@pytest.mark.slow
def test_errors_name_the_flag(presets, tmp_path):
    output = tmp_path / "soup"
    assert "--presets must list two or more different models" in refusal(presets, output, "a")
    assert "--presets must list two or more different models" in refusal(presets, output, "aa")
    assert f"--presets {presets / 'x'}: A preset handle is" in refusal(presets, output, "ax")
    tiny_backbone().save_to_preset(tmp_path / "backbone")
    tiny_classifier({"num_layers": 1}).save_to_preset(tmp_path / "five")
    with pytest.raises(SystemExit) as error:
        run_script(tool, presets=f"{presets / 'a'},{tmp_path / 'backbone'}", output=output)
    assert "The preset has no head." in str(error.value)
    with pytest.raises(SystemExit) as error:
        run_script(tool, presets=f"{presets / 'a'},{tmp_path / 'five'}", output=output)
    assert "differ: num_classes is 2 and 5; labels is ['dog', 'cat'] and ['ant'" in str(error.value)
    missing = pathlib.Path(tmp_path / "none")
    assert f"--data {missing}: The folder" in refusal(presets, output, data=missing)
    for name in ("cat", "cow"):
        (tmp_path / "photos" / "val" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "photos" / "val" / name / "0.png")
    message = refusal(presets, output, data=tmp_path / "photos")
    assert "missing: dog; unknown: cow" in message
    (tmp_path / "photos" / "val" / "cow" / "0.png").write_text("no image")
    assert "--skip_broken_images" in refusal(presets, output, data=tmp_path / "photos")
    assert not output.exists()
