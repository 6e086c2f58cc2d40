"""The pages of docs/: their code runs as it stands, on less data, and the site builds."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

import keras_deit
from keras_deit.models import DeiTImageClassifier
from tests.conftest import BACKEND
from tests.examples.test_using import torchvision  # noqa: F401
from tests.pages import ROOT, blocks, published_files, reader, replaced  # noqa: F401
from tests.scripts import load_script, run_script

DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
# Run by the tests of what they are about, which need more than a page can have
ELSEWHERE = {
    "export.md": "tests/tools/test_export_model.py",
    "keras_hub.md": "tests/examples/test_using.py",
}
# The packages that a page needs beyond the tests' own
PEERS = {
    "data.md": ["grain"],
    "from_keras_hub.md": ["keras_hub"],
    "from_timm.md": ["timm"],
    "from_transformers.md": ["transformers"],
    "load.md": ["timm", "transformers"],
}
# What would take minutes
SHORTER = {
    "fine_tune.md": [
        ("recipe.batch_size_for(len(training)), recipe.epochs_for(len(training))", "4, 1"),
        ("epochs=3", "epochs=1"),
    ],
    "token_merging.md": [
        ("[:1437, ..., None]", "[:64, ..., None]"),
        ("[:1437]", "[:64]"),
        ("epochs=4", "epochs=1"),
    ],
    "distil.md": [("slice(0, 1437)", "slice(0, 64)"), ("slice(1437, None)", "slice(1437, 1469)")],
}
# More than two seconds of processor time
SLOW = {
    "any_size.md",
    "distil.md",
    "fine_tune.md",
    "image_sizes.md",
    "look_inside.md",
    "memory.md",
    "presets.md",
    "quantize.md",
    "resume.md",
    "start.md",
    "token_merging.md",
    "from_deit_tf.md",
}
# Has blocks for JAX, which run in a process of their own, and blocks for TensorFlow
FOR_BACKENDS = {"devices.md"}
CHECKS = {}


def check(page):
    def register(function):
        CHECKS[page] = function
        return function

    return register


def with_marks(page):
    marks = {
        "slow": page in SLOW,
        "peer": page in PEERS,
        "process": page in FOR_BACKENDS,
        "backend": page in FOR_BACKENDS,
    }
    marks = [getattr(pytest.mark, name) for name, is_set in marks.items() if is_set]
    return pytest.param(page, marks=marks)


@pytest.mark.parametrize(
    "page", [with_marks(page) for page in PAGES if page not in ELSEWHERE and blocks(f"docs/{page}")]
)
def test_code_runs(page, reader, request):  # noqa: F811
    for package in PEERS.get(page, ()):
        # Not `importorskip`, which would skip a package that is there and broken
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    if page in FOR_BACKENDS and BACKEND == "torch":
        pytest.skip("has no block for PyTorch")
    if "timm" in PEERS.get(page, ()):
        request.getfixturevalue("torchvision")
    path = f"docs/{page}"
    names = reader(path, replaced(path, blocks(path), SHORTER.get(page, ())))
    CHECKS.get(page, lambda names: None)(names)


@check("distil.md")
def distil(names):
    losses = names["distiller"].history.history
    assert losses["class_loss"][-1] < losses["class_loss"][0]
    # Saved before the second training on the page
    student = DeiTImageClassifier.from_preset("student")
    assert student.predict(names["images"][:4], verbose=0).shape == (4, 10)


def commands():
    """(page, command line) of README.md, docs/ and what it includes of benchmarks/."""
    included = [f"benchmarks/{name}.md" for name in ("README", "HOWTO", "LOG")]
    for page in ("README.md", *included, *(f"docs/{name}" for name in PAGES)):
        text = (ROOT / page).read_text(encoding="utf-8")
        shells = re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
        shells += re.findall(r"(?:^ {4}.*\n)+", text, flags=re.MULTILINE)  # README's
        shells += re.findall(r"`((?:python|pip) \S+[^`]*)`", text)
        for line in "\n".join(shells).replace("\\\n", " ").splitlines():
            yield from ((page, part.strip()) for part in re.split(r"&&|;", line))


def test_commands_name_what_there_is():
    extras = (ROOT / "setup.cfg").read_text(encoding="utf-8").split("[options.extras_require]")[1]
    checked = set()
    for page, command in commands():
        for extra in re.findall(r'pip install "?\.\[([\w,-]+)\]', command):
            for name in extra.split(","):
                assert f"\n{name} =\n" in extras, (page, command)
                checked.add(name)
        program = re.search(
            r"\bpython (?:-m (benchmarks\.\w+)|((?:tools|examples)/\w+\.py))", command
        )
        if program is None:
            continue
        path = ROOT / (program[2] or f"{program[1].replace('.', '/')}.py")
        assert path.exists(), (page, command)
        source = path.read_text(encoding="utf-8")
        for flag in re.findall(r"--(?:no)?(\w+)", command):
            assert re.search(rf'"(?:--)?(?:no)?{flag}"', source), (page, command, flag)
        checked.add(path.name)
    assert {"tensorflow", "docs", "export_model.py", "run.py"} <= checked


def test_tables_of_presets_and_parity_are_current():
    run_script(load_script("tools/presets_table.py"), check=True)  # exits where one is not
    page = (DOCS / "presets.md").read_text(encoding="utf-8")
    for name in keras_deit.models.DeiTBackbone.presets:
        assert f"`{name}`" in page


def test_pictures_are_small_and_shown():
    shown = {
        (path.parent / picture).resolve()
        for path in (ROOT / "README.md", *(DOCS / name for name in PAGES))
        for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", path.read_text(encoding="utf-8"))
    }
    pictures = set((DOCS / "figures").iterdir())
    assert pictures and pictures <= shown
    for picture in shown:
        assert picture.stat().st_size < 150_000


@pytest.mark.slow
def test_pictures_are_those_of_the_tool(tmp_path):
    pytest.importorskip("matplotlib")
    tool = load_script("tools/docs_figures.py")
    assert {path.stem for path in (DOCS / "figures").iterdir()} == set(tool.FIGURES)
    run_script(tool, only="filters,token_merging", output=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"filters.png", "token_merging.png"}


def test_links_between_pages_lead_somewhere():
    """On the web site of the repository; those of the site are for Sphinx to check."""
    pages = [ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md")]
    for page in (*pages, *(DOCS / name for name in PAGES)):
        text = re.sub(
            r"(?s)^```.*?^```|`[^`\n]+`", "", page.read_text(encoding="utf-8"), flags=re.M
        )
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert link.startswith("http") or (page.parent / link).exists(), (page.name, link)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a warning is an error."""
    pytest.importorskip("myst_parser")
    output = tmp_path_factory.mktemp("site")
    result = run_tool("-m", "sphinx", "-W", "-q", "-b", "html", "docs", str(output))
    assert result.returncode == 0, result.stderr
    return output


@pytest.mark.process
@pytest.mark.slow
def test_the_site_has_every_public_name(site):
    from sphinx.util.inventory import InventoryFile

    with open(site / "objects.inv", "rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, path: path)
    known = {
        name for kind, entries in inventory.items() if kind.startswith("py:") for name in entries
    }
    for package in keras_deit.__all__:
        module = getattr(keras_deit, package)
        names = {f"keras_deit.{package}.{name}" for name in module.__all__}
        assert names and names <= known, names - known


@pytest.mark.process
@pytest.mark.slow
def test_pages_of_the_site_are_not_empty(site):
    for name in PAGES:
        text = (site / name).with_suffix(".html").read_text(encoding="utf-8")
        article = re.search(r"<article.*?</article>", text, flags=re.DOTALL)[0]
        assert len(re.sub(r"<[^>]+>", "", article)) > 300, name


def run_tool(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
