"""metadata.json: which files belong to a preset, and their checksums."""

import dataclasses
import hashlib
import re

import keras

from keras_deit.presets.kinds import (
    TEXT,
    Kind,
    check_values,
    list_of,
    object_of,
    one_of,
    or_null,
    whole,
)

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TASK = "task.json"
HEAD_WEIGHTS = "head.safetensors"
PREPROCESSOR = "preprocessor.json"
LABELS = "labels.json"
METADATA = "metadata.json"
CARD = "README.md"
# The weights files of version 0.1
HDF5 = {WEIGHTS: "model.weights.h5", HEAD_WEIGHTS: "task.weights.h5"}
FILES = (CONFIG, WEIGHTS, TASK, HEAD_WEIGHTS, PREPROCESSOR, LABELS, METADATA, CARD, *HDF5.values())

ALL_WEIGHTS = (WEIGHTS, HEAD_WEIGHTS, *HDF5.values())

FORMAT = 3
_HDF5_FORMAT = 1

_SHA256 = Kind(
    "a SHA-256",
    lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
)
_KINDS = {"keras_version": TEXT, "origin": or_null(TEXT)}
# Up to format 2, only the weights had a checksum.
_WEIGHTS = Kind("a JSON object with the checksums of the weights", lambda value: _have_sums(value))
_SHAPES = object_of(list_of(whole(0, 2**40), 0, 8))


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What metadata.json says.

    Attributes:
        checksums: {file name: SHA-256}; up to format 2, `None` for all files but the weights.
        card_checksum: SHA-256 of the model card as it was written. Users may edit the card.
        origin: handle of the preset that the weights come from, or `None`.
        hdf5_shapes: {file name: {variable path: shape}} of a preset of version 0.1; otherwise
            empty.
    """

    checksums: dict
    card_checksum: str | None
    origin: str | None
    hdf5_shapes: dict


def create_metadata(folder, origin):
    """The content of metadata.json for the files in `folder`."""
    return {
        "format": FORMAT,
        "keras_version": keras.__version__,
        "origin": origin,
        "files": {file.name: _file_sha256(file) for file in sorted(folder.iterdir())},
    }


def parse_metadata(content, where):
    """Returns the `Metadata` of a parsed metadata.json.

    Raises:
        ValueError: if the file was changed, or a newer version of the package wrote it.
    """
    check_values(content, {"format": whole(1, 10**6)}, where)
    if content.get("format", 0) > FORMAT:
        raise ValueError(
            f"A newer version of keras_deit wrote {where}. Upgrade with "
            f"`pip install -U keras_deit`. Received: format {content['format']}, and this version "
            f"reads 1 to {FORMAT}"
        )
    missing = sorted({"format", "files"} - set(content))
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}. Restore the file.")
    if content["format"] == FORMAT:
        files = Kind(
            f"the SHA-256 of files among {', '.join(FILES)}",
            lambda value: object_of(_SHA256).accepts(value) and set(value) <= set(FILES),
        )
        check_values(content, {**_KINDS, "files": files}, where)
        _check_listed(content["files"], where)
        checksums = dict(content["files"])
        card_checksum = checksums.pop(CARD, None)
        return Metadata(checksums, card_checksum, _origin(content), {})
    kinds = {
        **_KINDS,
        "files": list_of(one_of(*FILES)),
        "weights": _WEIGHTS,
        "card_sha256": or_null(_SHA256),
    }
    check_values({"weights": None, **content}, kinds, where)
    _check_listed(content["files"], where)
    entries = content["weights"]
    unlisted = set(entries) ^ set(content["files"]).intersection(ALL_WEIGHTS)
    if unlisted:
        raise ValueError(
            f"{where} must have a checksum for each weights file that it lists. Restore the file. "
            f"Different: {', '.join(sorted(unlisted))}"
        )
    is_hdf5 = content["format"] == _HDF5_FORMAT
    return Metadata(
        {
            **dict.fromkeys(set(content["files"]) - {CARD, METADATA}),
            **{name: entry["sha256"] for name, entry in entries.items()},
        },
        content.get("card_sha256"),
        _origin(content),
        {name: entry.get("variables", {}) for name, entry in entries.items()} if is_hdf5 else {},
    )


def _origin(content):
    """The handle of a preset, or `None` for other text, which must not get into a model card."""
    origin = content.get("origin")
    return origin if origin and re.fullmatch(r"[\w./:-]{1,200}", origin) else None


def _file_sha256(file):
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_listed(files, where):
    if CONFIG not in files:
        raise ValueError(f"{where} must list {CONFIG} in 'files'. Restore the file.")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def _have_sums(entries):
    return isinstance(entries, dict) and all(
        name in FILES
        and isinstance(entry, dict)
        and _SHA256.accepts(entry.get("sha256"))
        and _SHAPES.accepts(entry.get("variables", {}))
        for name, entry in entries.items()
    )
