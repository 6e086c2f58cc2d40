"""How the classes of the images relate to those of a model, and the ReaL labels of ImageNet."""

import json
import os
import pathlib
import re

import numpy as np

from keras_deit import presets

NUM_IMAGENET_IMAGES = 50_000


def class_positions(labels, class_names):
    """Index in `labels` of each class of the images.

    ImageNet's classes are folders named by synset; the classes of other models are their labels.
    """
    if labels is None:
        raise ValueError(
            "The preset has no labels, so its outputs have no class names. Save it again with "
            "`DeiTImageClassifier.from_preset(handle, labels=[...]).save_to_preset(directory)`."
        )
    # Compares most labels only: some label lists tell the two classes "crane" apart.
    is_imagenet = (
        len(labels) == 1000
        and np.mean(np.array(labels) == np.array(presets.imagenet_labels())) > 0.99
    )
    expected = presets.imagenet_synsets() if is_imagenet else tuple(labels)
    if sorted(expected) != sorted(class_names):
        missing = [name for name in expected if name not in class_names]
        unknown = [name for name in class_names if name not in expected]
        raise ValueError(
            f"The images must have the {len(labels)} classes of the model, named by "
            f"{'ImageNet synset' if is_imagenet else 'its labels'}. Rename the folders, or choose "
            f"another model. Received: {len(class_names)} classes; missing: {_some(missing)}; "
            f"unknown: {_some(unknown)}"
        )
    return [expected.index(name) for name in class_names]


def read_real_labels(path, images):
    """The ReaL labels of each image: no class, one or several (Beyer et al., 2020)."""
    if images.class_names != presets.imagenet_synsets():
        raise ValueError(
            "ReaL labels exist for ImageNet's validation set only, but the images do not have its "
            "1000 synsets as classes. Leave the flag out."
        )
    names = images.file_names()
    found = [re.fullmatch(r"ILSVRC2012_val_(\d{8})\.\w+", name) for name in names]
    numbers = [int(match[1]) if match else 0 for match in found]
    others = [
        name for name, number in zip(names, numbers) if not 1 <= number <= NUM_IMAGENET_IMAGES
    ]
    if others:
        raise ValueError(
            "The images must have the names of ImageNet's validation set, "
            "ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG. Received: "
            f"{_some(others)}"
        )
    try:
        content = json.loads(pathlib.Path(os.path.expanduser(path)).read_bytes())
    except OSError as error:
        raise ValueError(f"The file cannot be read. {error}") from error
    except ValueError as error:
        raise ValueError(
            f"The file is not JSON. Download real.json of google-research/reassessed-imagenet "
            f"again. {error}"
        ) from error
    if not _are_real_labels(content):
        raise ValueError(
            f"The file must contain {NUM_IMAGENET_IMAGES} lists of classes from 0 to 999. Download "
            "real.json of google-research/reassessed-imagenet."
        )
    return [content[number - 1] for number in numbers]


def _are_real_labels(content):
    return (
        isinstance(content, list)
        and len(content) == NUM_IMAGENET_IMAGES
        and all(
            isinstance(classes, list) and all(each in range(1000) for each in classes)
            for classes in content
        )
    )


def shortened(label, most=24):
    """A label for a picture. Labels of ImageNet are lists of synonyms: the first is kept."""
    if len(label) > most:
        label = label.partition(",")[0]
    return label if len(label) <= most else f"{label[: most - 2]}..."


def _some(names):
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "none"
