"""README.md: its code runs, its commands are those that CI takes, its figures have a source."""

import re

import pytest

from tests.pages import ROOT, blocks, published_files, reader, replaced  # noqa: F401

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = blocks("README.md")
HEADINGS = re.findall(r"^## (.*)\n(?:(?!^## ).*\n)*?```python", README, flags=re.MULTILINE)

# What takes longer than a test should
SHORTER = {
    BLOCKS[2]: [("epochs=3", "epochs=1")],
    BLOCKS[3]: [
        ("images[..., None]", "images[:64, ..., None]"),
        ("digits.target", "digits.target[:64]"),
    ],
}


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(
            block, id=heading, marks=() if heading == "Compose your own" else pytest.mark.slow
        )
        for heading, block in zip(HEADINGS, BLOCKS)
    ],
)
def test_code_runs(block, reader):  # noqa: F811
    reader("README.md", replaced("README.md", [block], SHORTER.get(block, ())))


def test_has_its_code_and_its_two_commands():
    assert HEADINGS == ["Predict", "Compose your own", "Fine-tune", "Distil", "Look inside"]
    assert len(BLOCKS) == 5
    assert '    pip install ".[tensorflow,examples]" && python examples/quickstart.py\n' in README
    assert '    pip install ".[test]" && pytest\n' in README


def test_is_short():
    assert len(README.splitlines()) <= 150


def test_speed_is_that_of_the_benchmarks():
    table = README.split("## Speed")[1].split("## ")[0]
    rows = re.findall(
        r"^\| (inference|training) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|", table, re.MULTILINE
    )
    assert len(rows) == 4
    measured = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").splitlines()
    for mode, precision, ours, peer, ratio in rows:
        start = f"| deit_small_distilled_patch16_224 | 8 | {mode} | {precision}"
        (row,) = [
            row
            for row in measured
            if row.startswith(start) and f"| {ours} |" in row and f"| {peer} |" in row
        ]
        assert f"**{ratio}**" in row
    exported = re.search(r"runs at ([\d.]+) images per second in bfloat16", README)[1]
    assert f"openvino {exported} |" in "\n".join(measured)
