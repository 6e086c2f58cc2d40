"""Where the files of a preset are: in a local folder or in a repository on the Hugging Face Hub."""

import json
import pathlib
import re

from keras_deit.atomic import recover_directory
from keras_deit.presets import hub
from keras_deit.presets.words import short

HUB = "hf://"
LARGEST_JSON = 2**24  # bytes: twenty times what the labels of ImageNet-21k take
DEEPEST_JSON = 32  # values inside values


class Folder:
    """A local folder."""

    handle = None  # model cards do not mention local paths

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def __str__(self):
        return str(self.path)

    def read(self, name):
        """The content of a file as bytes, or `None` if it does not exist."""
        file = self.path / name
        try:
            return _content(file, self.where(name)) if file.is_file() else None
        except FileNotFoundError:  # replaced since
            return None

    def recover(self):
        """Waits for a save, or restores what a killed one has moved away.

        Returns:
            Whether it did either, so that it is worth another look.
        """
        return recover_directory(self.path)

    def where(self, name):
        """The file, for error messages."""
        return str(self.path / name)

    def listing(self):
        if not self.path.is_dir():
            return "a file"
        return (
            ", ".join(sorted(entry.name for entry in self.path.iterdir())[:8])
            or "an empty directory"
        )


class Repository:
    """A repository on the Hugging Face Hub. Each file is downloaded on first use.

    All files come from one commit: that of `revision`, or the newest when the first file is
    downloaded. The repositories of the published weights do not change, so `published=True` reads
    the cache without asking the hub.
    """

    def __init__(self, name, published=False, revision=None):
        if not is_repository_name(name):
            raise ValueError(
                "A preset on the Hugging Face Hub is named by its owner and repository, "
                f"'{HUB}owner/repo'. Received: '{HUB}{name}'"
            )
        self.name = name
        self.handle = f"{HUB}{name}"
        self._published = published
        self._revision = revision

    def __str__(self):
        return f"{self.name!r} on the Hugging Face Hub"

    def read(self, name):
        if self._revision is None and self._published:
            self._revision = hub.cached_revision(self.name, name)
        path = hub.download(self.name, name, self._revision)
        if path is None:
            return None
        self._revision = hub.revision_of(path)
        content = _content(pathlib.Path(path), self.where(name))
        hub.verify(content, path, self.where(name))
        return content

    def recover(self):
        return False  # the hub replaces all files of a commit at once

    def where(self, name):
        return f"{name} of {self}"

    def listing(self):
        return "a repository without these files"


def is_repository_name(name):
    """Whether `name` has the form "owner/repo"."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def need(files, name, advice):
    """The content of a file, or a ValueError with `advice` if it does not exist."""
    content = files.read(name)
    if content is None:
        raise ValueError(f"{files.where(name)} does not exist. {advice}")
    return content


def read_json(files, name):
    """The content of a JSON file, or `None` if it does not exist."""
    content = files.read(name)
    return None if content is None else parse_json(content, files.where(name))


def parse_json(content, where):
    """The value that bytes in JSON stand for.

    Raises:
        ValueError: if it is not JSON in UTF-8, is nested deeply, has a key twice, or has numbers
            that JSON does not have.
    """
    try:
        value = json.loads(
            content.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_object
        )
        _check_depth(value)
    except (ValueError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(
            f"{where} is not valid JSON: {problem}. Restore it, or save the preset again."
        ) from error
    return value


def _content(file, where):
    largest = LARGEST_JSON if file.suffix == ".json" else -1
    with open(file, "rb") as stream:
        content = stream.read(largest + 1 if largest > 0 else -1)
    if 0 < largest < len(content):
        raise ValueError(
            f"{where} is larger than {largest:,} bytes, the most that a JSON file of a preset may "
            "have. Restore it, or save the preset again."
        )
    return content


def _refuse_constant(name):
    raise ValueError(f"{name} is not a number in JSON")


def _object(pairs):
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"{short(twice)} is there twice")
    return content


def _check_depth(value):
    level = [value]
    for _ in range(DEEPEST_JSON):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise ValueError(f"it has more than {DEEPEST_JSON} values inside each other")
