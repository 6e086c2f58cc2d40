"""The class names of ImageNet-1k."""

import functools
import pathlib

_ASSETS = pathlib.Path(__file__).parent.parent / "assets"


@functools.cache
def imagenet_labels() -> tuple[str, ...]:
    """Returns the names of the 1000 classes in the order of the logits, from WordNet 3.0."""
    return tuple((_ASSETS / "imagenet_labels.txt").read_text(encoding="utf-8").splitlines())


@functools.cache
def imagenet_synsets() -> tuple[str, ...]:
    """Returns the synset IDs of the 1000 classes, such as "n01440764", in the order of the logits.

    ImageNet's folders are named by synset ID, and the logits are in their sorted order.
    """
    return tuple((_ASSETS / "imagenet_synsets.txt").read_text(encoding="utf-8").splitlines())
