"""What the classes of ImageNet-1k are called."""

import functools
import pathlib

_FILE = pathlib.Path(__file__).parent.parent / "assets" / "imagenet_labels.txt"


@functools.cache
def imagenet_labels():
    """The words of WordNet 3.0 for the 1000 classes, in the order of their synset numbers, which is that of the logits."""
    return tuple(_FILE.read_text(encoding="utf-8").splitlines())
