"""Runs the command-line programs of `tools` and `examples` in the process of the tests."""

import functools
import importlib.util
import pathlib
import sys

import absl.flags
import pytest

ROOT = pathlib.Path(__file__).parents[1]


def load_script(path):
    """A script as a module, with flags of its own: those of other scripts in the process have the
    same names.

    Args:
        path: file, from the root of the repository.
    """
    path = ROOT / path
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    own = absl.flags.FlagValues()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, path.stem, module)  # absl asks it for its documentation
        # As Python does for a script: it imports what lies beside it
        patch.syspath_prepend(path.parent)
        patch.setattr(absl.flags, "FLAGS", own)
        for name in [name for name in dir(absl.flags) if name.startswith("DEFINE_")]:
            patch.setattr(
                absl.flags, name, functools.partial(getattr(absl.flags, name), flag_values=own)
            )
        spec.loader.exec_module(module)
    return module


def run_script(module, **flags):
    """`main`, as if the script had been started with these flags alone.

    `SystemExit`, as `sys.exit` of a message raises it, is for the caller to look at; absl's own
    refusals of a flag are `absl.flags.Error`.
    """
    set_flags(module, **flags)
    module.main([module.__name__])


def set_flags(module, **flags):
    module.FLAGS.unparse_flags()
    for name in module.FLAGS:
        module.FLAGS[name].unparse()
    module.FLAGS([module.__name__, *(f"--{name}={value}" for name, value in flags.items())])
