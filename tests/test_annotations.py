"""Public signatures are annotated, for editors and for mypy, which .ci/run runs."""

import importlib
import inspect

import pytest

import keras_deit

PACKAGES = [importlib.import_module(f"keras_deit.{name}") for name in keras_deit.__all__]
PUBLIC = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in PACKAGES
    for name in package.__all__
    if callable(getattr(package, name))
}


def signatures(thing):
    """{name: signature} of a function, or of a constructor and the public methods that are not
    Keras' own.
    """
    if not inspect.isclass(thing):
        return {thing.__name__: inspect.signature(thing)}
    ours = [cls for cls in thing.__mro__ if cls.__module__.startswith("keras_deit")]
    others = [cls for cls in thing.__mro__ if cls not in ours]
    found = {"__init__": inspect.signature(thing.__init__)}
    for cls in ours:
        for name, member in vars(cls).items():
            function = getattr(member, "__func__", member)  # of a classmethod
            is_new = not name.startswith("_") and not any(hasattr(other, name) for other in others)
            if is_new and inspect.isfunction(function):
                found[name] = inspect.signature(function)
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_public_signatures_are_annotated(name):
    missing = []
    for where, signature in signatures(PUBLIC[name]).items():
        for parameter in signature.parameters.values():
            if parameter.name not in ("self", "cls") and parameter.annotation is parameter.empty:
                missing.append(f"{where}({parameter.name})")
        if where != "__init__" and signature.return_annotation is signature.empty:
            missing.append(f"{where} -> ?")
    assert missing == []
