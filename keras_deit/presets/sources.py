"""Where the files of a preset are: in a local folder or in a repository on the Hugging Face Hub."""

import json
import pathlib
import re

from keras_deit.presets import hub

HUB = "hf://"


class Folder:
    """A local folder."""

    handle = None  # model cards do not mention local paths

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def __str__(self):
        return str(self.path)

    def find(self, name):
        """The path of a file, or `None` if it does not exist."""
        file = self.path / name
        return file if file.is_file() else None

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

    All files come from one commit, the newest when the first file is downloaded. The repositories
    of the published weights do not change, so `published=True` reads the cache without asking the
    hub.
    """

    def __init__(self, name, published=False):
        if not is_repository_name(name):
            raise ValueError(
                "A preset on the Hugging Face Hub is named by its owner and repository, "
                f"'{HUB}owner/repo'. Received: '{HUB}{name}'"
            )
        self.name = name
        self.handle = f"{HUB}{name}"
        self._published = published
        self._revision = None
        self._found = {}

    def __str__(self):
        return f"{self.name!r} on the Hugging Face Hub"

    def find(self, name):
        if name not in self._found:
            if self._revision is None and self._published:
                self._revision = hub.cached_revision(self.name, name)
            path = hub.download(self.name, name, self._revision)
            if path is not None:
                self._revision = hub.revision_of(path)
            self._found[name] = path and pathlib.Path(path)
        return self._found[name]

    def where(self, name):
        return f"{name} of {self}"

    def listing(self):
        return "a repository without these files"


def is_repository_name(name):
    """Whether `name` has the form "owner/repo"."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def need(files, name, advice):
    """The path of a file, or a ValueError with `advice` if it does not exist."""
    path = files.find(name)
    if path is None:
        raise ValueError(f"{files.where(name)} does not exist. {advice}")
    return path


def read_json(files, name):
    """The content of a JSON file, or `None` if it does not exist."""
    path = files.find(name)
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{files.where(name)} is not valid JSON: {error}. Restore it, or save the preset again."
        ) from error
