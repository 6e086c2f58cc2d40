"""What files contain, in errors: short, and without what a terminal would take as a command."""

import reprlib


def short(value):
    """A value, cut to 200 characters."""
    limited = reprlib.Repr()
    limited.maxstring = limited.maxother = limited.maxlong = 80
    return printable(limited.repr(value))


def printable(text):
    """Text of one line, cut to 200 characters."""
    text = text if len(text) <= 200 else f"{text[:200]}..."
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def listed(items, most=8):
    """The first items, and how many more there are."""
    if not items:
        return "none"
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(map(printable, items[:most])) + more
