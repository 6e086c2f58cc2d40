"""Two sets of named shapes, compared; everything that differs is listed in one error."""


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


def listed(items, most=8):
    """The first items, and how many more there are."""
    if not items:
        return "none"
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more
