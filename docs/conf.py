"""The documentation site: `python -m sphinx -W -b html docs docs/_build/html`."""

import importlib
import inspect
import os
import pathlib
import re
import textwrap

# Less of TensorFlow's log among what Sphinx prints
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import keras_deit

DOCS = pathlib.Path(__file__).parent

# Their weights go by the name of the class that they replace; a page goes by the name that users
# type.
for name in ("MergingTransformerBlock", "SelectingTransformerBlock"):
    getattr(keras_deit.layers, name).__name__ = name

project = "keras_deit"
author = "The keras_deit authors"
version = release = keras_deit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"keras_deit {release}"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["custom.css"]

myst_heading_anchors = 3

# Every reference to a public name must resolve. Keras, NumPy and TensorFlow are not ours, and
# types of inner modules, which annotations may name, have no page.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!keras_deit).*"),
    (r"py:.*", r"keras_deit\.\w+\.\w+\.\w+"),
]

autodoc_member_order = "bysource"
# `call`, `build` and `get_config` have no docstring on purpose; Keras' own would take their place.
autodoc_inherit_docstrings = False
add_module_names = False
toc_object_entries_show_parents = "hide"
python_display_short_literal_types = True

napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [
    ("Call arguments", "params_style"),
    "Input shape",
    "Output shape",
    "Reference",
]


def public_modules():
    """The packages that `keras_deit` exports, and the modules of `training` that are imported by
    themselves because they need TensorFlow.
    """
    packages = [f"keras_deit.{name}" for name in keras_deit.__all__]
    modules = (
        "augmentation",
        "batches",
        "image_folder",
        "image_reader",
        "progressive_batches",
        "tfds_images",
    )
    return [*packages, *(f"keras_deit.training.{name}" for name in modules)]


def public_names(module):
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name in vars(module) if not name.startswith("_")]
        names = [name for name in names if _is_defined_in(module, name)]
    return names


def _is_defined_in(module, name):
    return getattr(vars(module)[name], "__module__", None) == module.__name__


def write_api_pages(app):
    """A page for each public module, so that a new name has its entry without a line here."""
    folder = DOCS / "api"
    folder.mkdir(exist_ok=True)
    pages = {}
    for name in public_modules():
        module = importlib.import_module(name)
        entries = "\n".join(_entry(name, entry) for entry in public_names(module))
        pages[f"{name}.rst"] = f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n\n{entries}"
    for file in folder.iterdir():
        if file.name not in pages:
            file.unlink()
    for file, text in pages.items():
        # An unchanged page keeps its time, and Sphinx need not read it again.
        if not (folder / file).exists() or (folder / file).read_text() != text:
            (folder / file).write_text(text)


def _entry(module, name):
    value = getattr(importlib.import_module(module), name)
    if isinstance(value, type):
        mixed_in = "".join(
            f"\n   .. auto{kind}:: {member}\n" for kind, member in _from_mixins(value)
        )
        return f".. autoclass:: {module}.{name}\n   :members:\n{mixed_in}"
    kind = "function" if callable(value) else "data"
    options = "   :no-value:\n" if kind == "data" else ""
    return f".. auto{kind}:: {module}.{name}\n{options}"


def _from_mixins(cls):
    """(kind, name) of what a model has from mixins of ours, beyond what Keras' models have."""
    for base in cls.__mro__[1:]:
        if base.__module__.startswith("keras_deit.models"):
            for name, member in vars(base).items():
                if not name.startswith("_") and not hasattr(keras.Model, name) and member.__doc__:
                    yield "method" if callable(member) else "property", name


_FENCE = re.compile(r"(?ms)^[ ]*```python\n(.*?)^[ ]*```$")
_LINK = re.compile(r"\[([^][]+)\]\((https?://[^)\s]+)\)")
_CODE = re.compile(r"(?<![`:\w])`([^`]+)`(?![`_])")
_STAR = re.compile(r"(?<=[ (\[])\*(?=\w)")


def markdown_to_rst(app, what, name, obj, options, lines):
    """Docstrings are Markdown, as Keras' are: links, and names between single backticks."""
    if what == "data":  # has the docstring of its type, such as dict's
        names = ", ".join(f"``{key!r}``" for key in obj)
        lines[:] = [f"``{type(obj).__name__}`` with the keys {names}."]
        return
    # Odd parts are fenced code.
    parts = _FENCE.split("\n".join(lines))
    parts[::2] = [_text(part) for part in parts[::2]]
    parts[1::2] = [_code_block(part) for part in parts[1::2]]
    lines[:] = "".join(parts).split("\n")


def _text(text):
    # Code first: the links are written with backticks, too.
    text = _CODE.sub(_code, text)
    text = _LINK.sub(lambda found: f"`{' '.join(found[1].split())} <{found[2]}>`__", text)
    return "\n".join(
        line if line.lstrip().startswith((">>>", "...")) else _STAR.sub(r"\*", line)
        for line in text.split("\n")
    )


def _code_block(code):
    return "\n.. code-block:: python\n\n" + textwrap.indent(textwrap.dedent(code), "    ")


def _code(found):
    # A span that the docstring breaks keeps its lines: those after it would move otherwise.
    words = found[1]
    name = words.removeprefix("keras_deit.")
    target = REFERENCES.get(name.removesuffix("()"))
    if target:
        return f":py:obj:`{words} <{target}>`"
    return "\n".join(
        f"{line[: len(line) - len(line.lstrip())]}``{line.strip()}``" for line in words.split("\n")
    )


def references():
    """{how docstrings write a public name: its full name}."""
    found = {}
    for module in public_modules():
        for name in public_names(importlib.import_module(module)):
            short = f"{module.removeprefix('keras_deit.')}.{name}"
            found[name] = found[short] = f"{module}.{name}"
    return found


REFERENCES = references()


def links_of_included_pages(app, relative_path, parent, source):
    """The links of benchmarks/*.md and CHANGELOG.md as seen from docs/."""
    text = source[0]
    text = text.replace("](../docs/", "](").replace("](docs/", "](")
    for page, target in PAGES.items():
        text = text.replace(f"]({page}.md", f"]({target}.md")
    # Results and programs lie beside the page; Sphinx offers them as downloads.
    text = re.sub(r"\]\(([\w/]+\.(?:py|csv|jsonl))\)", r"](../benchmarks/\1)", text)
    source[0] = text


PAGES = {
    "README": "benchmarks",
    "HOWTO": "benchmarks_howto",
    "LOG": "benchmarks_log",
}


def signature_of_init(app, what, name, obj, options, signature, return_annotation):
    """Keras' layers have a `__new__` that takes anything; users type what `__init__` takes."""
    if what != "class" or obj.__init__ is object.__init__:
        return None
    parameters = list(inspect.signature(obj.__init__).parameters.values())[1:]
    return str(inspect.Signature(parameters)), None


def setup(app):
    app.connect("builder-inited", write_api_pages)
    app.connect("autodoc-process-signature", signature_of_init)
    app.connect("autodoc-process-docstring", markdown_to_rst, priority=400)
    app.connect("include-read", links_of_included_pages)
