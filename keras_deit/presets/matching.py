"""Every name on both sides, with its shape, or an error that lists all that differs."""


def check_match(found, expected, problem):
    """Raises a ValueError that starts with `problem`, unless the {name: shape} that came is the one
    expected.
    """
    missing = [f"{name} {shape}" for name, shape in expected.items() if name not in found]
    left_over = [f"{name} {shape}" for name, shape in found.items() if name not in expected]
    misshapen = [
        f"{name} is {found[name]}, not {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if missing or left_over or misshapen:
        raise ValueError(
            f"{problem}\nMissing: {_listed(missing)}\nLeft over: {_listed(left_over)}\nOther "
            f"shape: {_listed(misshapen)}"
        )


def _listed(items, most=8):
    """The first items in a line, and how many more there are."""
    if not items:
        return "none"
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more
