"""What a value in a JSON file may be, and one error for everything else.

A file from the hub may contain anything. Its values are checked here before any of them reaches a
constructor, so that a wrong one is named with its file and its key, and no size in a file makes a
program allocate more than a model can need.
"""

import dataclasses
import json
import math
import unicodedata
from collections.abc import Callable
from typing import Any

from keras_deit.presets.words import short


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of values: what an error calls it, and the test for it."""

    words: str
    accepts: Callable[[Any], bool]


def check_values(content, kinds, where, advice="Restore the file."):
    """Refuses a JSON object with a value of another kind.

    Args:
        content: the parsed content.
        kinds: {key: `Kind`}. Keys that are missing in `content`, and keys of `content` that are not
            in `kinds`, are left to the caller.
        where: the file, and the place in it if it is not the top, for the error.
        advice: what to do, for the error.

    Raises:
        ValueError: names the file, the key and the value.
    """
    if not is_object(content):
        raise ValueError(f"{where} must be a JSON object. Received: {short(content)}")
    for key, kind in kinds.items():
        if key in content and not kind.accepts(content[key]):
            raise ValueError(
                f"{key!r} in {where} must be {kind.words}. {advice} Received: {short(content[key])}"
            )


def is_object(value):
    return isinstance(value, dict)


def is_text(value):
    """A string of at most 10,000 characters, without control characters or half a surrogate pair,
    which a terminal or a file would not take.
    """
    return (
        isinstance(value, str)
        and len(value) <= 10_000
        and all(
            unicodedata.category(character) not in ("Cc", "Cs") or character in "\t\n"
            for character in value
        )
    )


def whole(low, high):
    return Kind(
        f"an integer from {low:,} to {high:,}",
        lambda value: type(value) is int and low <= value <= high,
    )


def number(low, high):
    return Kind(f"a number from {low:,} to {high:,}", lambda value: _is_number(value, low, high))


def one_of(*values):
    return Kind(
        " or ".join(map(json.dumps, values)),
        # `1 == True` must not make 1 a bool.
        lambda value: any(type(value) is type(each) and value == each for each in values),
    )


def list_of(kind, low=0, high=100_000):
    length = f"{low}" if low == high else f"{low:,} to {high:,}"
    return Kind(
        f"a list of {length} items, each {kind.words}",
        lambda value: (
            isinstance(value, (list, tuple))
            and low <= len(value) <= high
            and all(map(kind.accepts, value))
        ),
    )


def object_of(kind):
    return Kind(
        f"a JSON object whose values are each {kind.words}",
        lambda value: (
            is_object(value) and all(map(is_text, value)) and all(map(kind.accepts, value.values()))
        ),
    )


def either(*kinds):
    return Kind(
        ", or ".join(kind.words for kind in kinds),
        lambda value: any(kind.accepts(value) for kind in kinds),
    )


def or_null(kind):
    return either(kind, one_of(None))


TEXT = Kind("text", is_text)
SWITCH = one_of(True, False)
OBJECT = Kind("a JSON object", is_object)

# No published vision transformer comes near these.
LAYERS = whole(1, 1000)
WIDTH = whole(1, 2**18)
PIXELS = whole(1, 2**16)
CHANNELS = whole(1, 2**12)
CLASSES = whole(1, 10**6)
RATE = number(0, 1)
NUMBER = Kind("a number", lambda value: _is_number(value, -1e30, 1e30))
SIZE = Kind(
    "a number of pixels from 1 to 65,536, or [height, width]",
    either(PIXELS, list_of(PIXELS, 2, 2)).accepts,
)
GRID = Kind(
    "a number of patches from 1 to 65,536, or [rows, columns]",
    either(PIXELS, list_of(PIXELS, 2, 2)).accepts,
)
STATISTICS = Kind(
    "a number, or a list of one number for each channel",
    either(NUMBER, list_of(NUMBER, 1, 2**12)).accepts,
)


def _is_number(value, low, high):
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and low <= value <= high
        and math.isfinite(value)
    )
