"""Two sets of named shapes, compared; everything that differs is listed in one error."""

from keras_deit.presets.words import listed


def refuse_mismatches(found, expected, problem):
    """Raises a ValueError that starts with `problem` unless both {name: shape} are equal."""
    missing = [f"{name} {shape}" for name, shape in expected.items() if name not in found]
    unexpected = [f"{name} {shape}" for name, shape in found.items() if name not in expected]
    misshapen = [
        f"{name} is {found[name]}, not {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"{problem}\nMissing: {listed(missing)}\nUnexpected: {listed(unexpected)}\n"
            f"Wrong shape: {listed(misshapen)}"
        )
