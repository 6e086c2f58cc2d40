"""The package uses the public API of Keras: what is private may change with any release."""

import ast
import functools
import pathlib

import keras
import pytest

import keras_deit

ROOT = pathlib.Path(keras_deit.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
# Names that Keras has, too, and the reason why they may be used here.
OWN = {
    ("layers/composite.py", "_dtype"): "an attribute of a plain class, SublayerArguments",
    ("layers/composite.py", "_trainable"): "an attribute of a plain class, SublayerArguments",
    ("training/optimizers.py", "_get_variable_index"): "Keras documents it for custom optimizers",
}
LOOKUPS = {"delattr", "getattr", "hasattr", "kwargs", "setattr"}


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name.isidentifier()


@functools.cache
def private_names_of_keras():
    """The private attributes and methods of the objects that the package works with."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    objects = [
        model,
        model.layers[0],
        model.layers[0].kernel,
        model.optimizer,
        model.outputs[0],
        keras.Model(model.inputs, model.outputs),
        keras.callbacks.Callback(),
        keras.dtype_policies.DTypePolicyMap(),
        keras.layers.Dropout(0.1),
        keras.layers.LayerNormalization(),
        keras.losses.MeanSquaredError(),
        keras.metrics.Mean(),
        keras.utils.PyDataset(),
        keras.distribution.LayoutMap,
        keras.optimizers.schedules.CosineDecay(0.1, 1),
    ]
    return {name for thing in objects for name in dir(thing) if is_private(name)}


def private_names_in(source):
    """The private names that a source uses, and those that it defines: attributes, methods,
    keyword arguments, and strings that are looked up in `kwargs` or with `getattr`.
    """
    tree, used, defined = ast.parse(source), [], []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            used.append(node.attr)
            if isinstance(node.ctx, ast.Store):
                defined.append(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.append(node.name)
            if node not in tree.body:  # a function of a module hides nothing of Keras'
                used.append(node.name)
        elif isinstance(node, ast.keyword):
            used.append(node.arg or "")
        elif isinstance(node, ast.Assign):
            defined += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif is_lookup(node):
            parts = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.Constant)]
            used += [part.value for part in parts if isinstance(part.value, str)]
    return set(filter(is_private, used)), set(filter(is_private, defined))


def is_lookup(node):
    """`"name" in kwargs`, `kwargs["name"]`, `kwargs.get("name")`, `getattr(thing, "name")`."""
    if isinstance(node, ast.Compare):
        where = node.comparators[0]
    elif isinstance(node, ast.Subscript):
        where = node.value
    elif isinstance(node, ast.Call):
        where = node.func.value if isinstance(node.func, ast.Attribute) else node.func
    else:
        return False
    return isinstance(where, ast.Name) and where.id in LOOKUPS


@functools.cache
def defined_in_the_package():
    sources = [file.read_text(encoding="utf-8") for file in SOURCES]
    return set().union(*(private_names_in(source)[1] for source in sources))


def of_others(source, file=None):
    """The private names in a source that Keras has, or that the package does not define."""
    used, _ = private_names_in(source)
    foreign = (used & private_names_of_keras()) | (used - defined_in_the_package())
    return sorted(name for name in foreign if (file, name) not in OWN)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_private_is_used(file):
    source = file.read_text(encoding="utf-8")
    assert of_others(source, file.relative_to(ROOT).as_posix()) == []
    assert "keras.src" not in source


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("model._flatten_layers()", ["_flatten_layers"]),
        ("layer._tracker.unlock()", ["_tracker"]),
        ("keras._tf_keras", ["_tf_keras"]),
        ("class A(keras.Model):\n    def _pre_build(self): pass", ["_pre_build"]),
        ("if '_use_cached_eval_dataset' not in kwargs: pass", ["_use_cached_eval_dataset"]),
        ("model.evaluate(x, _use_cached_eval_dataset=True)", ["_use_cached_eval_dataset"]),
        ("getattr(layer, '_losses')", ["_losses"]),
        ("layer.build(shape)", []),
    ],
)
def test_what_is_private_is_found(source, found):
    assert of_others(source) == found


def test_keras_documents_what_custom_optimizers_need():
    assert "self._get_variable_index(variable)" in keras.optimizers.Optimizer.__doc__


@pytest.mark.parametrize(("file", "name"), OWN)
def test_every_exception_is_needed(file, name):
    assert name in of_others((ROOT / file).read_text(encoding="utf-8"))
