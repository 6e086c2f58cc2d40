"""What the classes of ImageNet-1k are called."""

import functools
import pathlib

_ASSETS = pathlib.Path(__file__).parent.parent / "assets"


@functools.cache
def imagenet_labels():
    """The words of WordNet 3.0 for the 1000 classes, in the order of their synset numbers, which is
    that of the logits.
    """
    return tuple((_ASSETS / "imagenet_labels.txt").read_text(encoding="utf-8").splitlines())


@functools.cache
def imagenet_synsets():
    """The synset numbers of the 1000 classes, such as "n01440764", which are the names of
    ImageNet's folders, in the order of the logits.
    """
    return tuple((_ASSETS / "imagenet_synsets.txt").read_text(encoding="utf-8").splitlines())
