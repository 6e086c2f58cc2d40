"""Long lists in errors."""


def listed(items, most=8):
    """The first items in a line, and how many more there are."""
    if not items:
        return "none"
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more
