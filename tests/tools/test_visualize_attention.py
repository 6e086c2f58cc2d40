"""tools/visualize_attention.py: pictures of real models and photographs, and errors."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from keras_deit.visualization import read_photograph
from tests.helpers import randomize, tiny_classifier
from tests.scripts import ROOT, load_script, run_script

tool = load_script("tools/visualize_attention.py")
DIGITS = "deit_nano_distilled_patch4_32_digits"


@pytest.fixture(scope="module")
def photograph(photographs, tmp_path_factory):
    file = tmp_path_factory.mktemp("photographs") / "china.jpg"
    Image.fromarray(photographs[0]).save(file)
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Presets of one and two prefix tokens and of DeiT III, with grids that are not square."""
    folder = tmp_path_factory.mktemp("presets")
    for name, distilled, scope in (
        ("plain", False, "all"),
        ("distilled", True, "all"),
        ("deit3", False, "patches"),
    ):
        classifier = tiny_classifier({"use_distillation_token": distilled, "position_scope": scope})
        randomize(classifier, np.random.default_rng(0)).save_to_preset(folder / name)
    any_size = {"image_shape": (None, None, 3), "position_grid_size": (3, 4)}
    randomize(tiny_classifier(any_size), np.random.default_rng(0)).save_to_preset(
        folder / "any_size"
    )
    tiny_classifier(preprocessor=None).save_to_preset(folder / "no_preprocessor")
    tiny_classifier({"num_merged_tokens": 2}).save_to_preset(folder / "merged")
    return folder


@pytest.mark.backend
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rollout", "heads", "filters", "positions"])
@pytest.mark.parametrize("name", ["plain", "distilled", "deit3", "any_size"])
def test_every_kind_of_every_family(kind, name, folder, photograph, tmp_path):
    run_script(
        tool,
        image=photograph,
        preset=folder / name,
        output=tmp_path / "deep" / "out.png",
        kind=kind,
    )
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["out.png"]
    picture = read_photograph(tmp_path / "deep" / "out.png")
    assert min(picture.shape[:2]) > 200
    assert picture.std() > 10  # something is drawn


@pytest.mark.slow
def test_home_directory(folder, photograph, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "china.jpg").write_bytes(photograph.read_bytes())
    run_script(tool, image="~/china.jpg", preset=folder / "plain", output="~/out.png")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["china.jpg", "out.png"]


@pytest.mark.slow
def test_options_change_the_picture(folder, photograph, tmp_path):
    drawn = []
    for options in (
        {},
        {"token": "distillation"},
        {"head_fusion": "max"},
        {"discard_ratio": 0.9},
        {"kind": "heads"},
        {"kind": "heads", "block": 0},
    ):
        run_script(
            tool,
            image=photograph,
            preset=folder / "distilled",
            output=tmp_path / "out.png",
            **options,
        )
        drawn.append((tmp_path / "out.png").read_bytes())
    assert len(set(drawn)) == len(drawn)
    run_script(
        tool,
        image=photograph,
        preset=folder / "distilled",
        output=tmp_path / "out.png",
        kind="heads",
        block=2,
    )
    assert (tmp_path / "out.png").read_bytes() == drawn[4]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_color_modes(mode, photographs, tmp_path):
    """With a model of gray images."""
    Image.fromarray(photographs[0]).convert(mode).save(tmp_path / "in.tiff")
    run_script(tool, image=tmp_path / "in.tiff", preset=DIGITS, output=tmp_path / "out.pdf")
    assert (tmp_path / "out.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_errors_name_the_flag(folder, photograph, tmp_path, monkeypatch):
    truncated = tmp_path / "half.jpg"
    truncated.write_bytes(photograph.read_bytes()[:20_000])
    good = {"image": photograph, "preset": folder / "plain", "output": tmp_path / "out" / "out.png"}
    for changes, message in (
        (
            {"image": tmp_path / "no.jpg"},
            f"--image {tmp_path}/no.jpg: There is no file {tmp_path}/no.jpg. Give the name of",
        ),
        ({"image": truncated}, f"{truncated} is truncated or damaged. Copy it again. "),
        (
            {"image": ROOT / "README.md"},
            f"{ROOT}/README.md is not an image that Pillow can read.",
        ),
        ({"preset": "deit_gigantic"}, "deit_gigantic"),
        (
            {"preset": folder / "no_preprocessor"},
            f"--preset {folder}/no_preprocessor: The preset has no preprocessor. Save it again",
        ),
        (
            {"preset": folder / "merged"},
            "merged and selected tokens have no place in the image.",
        ),
        (
            {"token": "distillation"},
            'The model has no distillation token. Use `token="class"`.',
        ),
        ({"kind": "heads", "block": 3}, "--block must be an index of the 3 blocks, 0 to 2."),
        ({"output": tmp_path / "out" / "out.bmp"}, "--output must end in one of ."),
        ({"output": folder / "plain"}, "--output must end in one of"),
    ):
        with pytest.raises(SystemExit) as exit:
            run_script(tool, **{**good, **changes})
        assert exit.value.code.startswith("Nothing drawn. ")
        assert message in exit.value.code
    with pytest.raises(
        SystemExit,
        match="Nothing drawn. --kind rollout needs a photograph: add --image photo.jpg.",
    ):
        run_script(tool, preset=folder / "plain", output=tmp_path / "out" / "out.png")
    assert not (tmp_path / "out").exists()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(SystemExit, match="No space left on device"):
        run_script(tool, **good)
    assert not (tmp_path / "out").exists()


@pytest.mark.backend
@pytest.mark.process
def test_from_a_terminal(photograph, tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, ROOT / "tools" / "visualize_attention.py", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    result = run(f"--image={photograph}", f"--preset={DIGITS}", f"--output={tmp_path}/out.png")
    assert (result.returncode, result.stdout) == (0, f"Wrote {tmp_path}/out.png\n"), result.stderr
    result = run(f"--image={tmp_path}/no.jpg", f"--preset={DIGITS}", f"--output={tmp_path}/two.png")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        f"Nothing drawn. --image {tmp_path}/no.jpg: There is no file {tmp_path}/no.jpg. Give the "
        "name of an image."
    )
    assert not (tmp_path / "two.png").exists()
