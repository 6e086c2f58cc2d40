"""The files of one version of a preset, verified as they are read."""

from keras_deit.presets.metadata import METADATA, parse_metadata, sha256
from keras_deit.presets.sources import parse_json

_ATTEMPTS = 100


class Snapshot:
    """The content of the files that metadata.json lists.

    A save may replace the preset between two files. So all files are read at once and compared with
    the checksums; if one differs and metadata.json has changed, everything is read again. Bytes
    that were compared are the bytes that are used.

    Args:
        files: `Folder` or `Repository`.
        without: names of files that are not needed.

    Attributes:
        metadata: `Metadata`.
    """

    def __init__(self, files, without=()):
        self._files = files
        for _ in range(_ATTEMPTS):
            raw = files.read(METADATA)
            if raw is not None:
                self._read(files, raw, without)
                if not self._problems or files.read(METADATA) == raw:
                    return
            elif not files.recover() and files.read(METADATA) is None:
                raise ValueError(
                    f"{files} is not a preset. A preset has config.json and metadata.json, as "
                    "`save_to_preset` writes them, or the config.json of timm or transformers. "
                    f"Found: {files.listing()}"
                )
        raise ValueError(
            f"{files} is replaced again and again while it is being read. Load it once the saves "
            "have ended."
        )

    def _read(self, files, raw, without):
        where = files.where(METADATA)
        self.metadata = parse_metadata(parse_json(raw, where), where)
        self._contents, self._problems = {}, {}
        for name, checksum in self.metadata.checksums.items():
            if name not in without:
                self._contents[name] = content = files.read(name)
                problem = self._problem(name, content, checksum)
                if problem:
                    self._problems[name] = problem

    def _problem(self, name, content, checksum):
        where = self._files.where(name)
        if content is None:
            return f"The preset is incomplete: {where} does not exist. Copy the preset again."
        if checksum is None or sha256(content) == checksum:
            return None
        return (
            f"{where} is truncated or was changed: `metadata.json` has SHA-256 {checksum}, the "
            f"file {sha256(content)}. Copy the preset again. To change a preset, load it with "
            "overrides and save it."
        )

    def __contains__(self, name):
        return name in self.metadata.checksums

    def size(self, names):
        """How many bytes these files have together."""
        for name in names:
            self._refuse_problem(name)
        return sum(len(self._contents.get(name, b"")) for name in names)

    def take(self, name):
        """Hands over the content of a file, so that its memory can be released after use.

        Raises:
            ValueError: if the file is missing, or its checksum is wrong.
        """
        self._refuse_problem(name)
        return self._contents.pop(name)

    def json(self, name):
        """The content of a JSON file, or `None` if the preset has no such file."""
        if name not in self:
            return None
        self._refuse_problem(name)
        return parse_json(self._contents[name], self._files.where(name))

    def _refuse_problem(self, name):
        if name in self._problems:
            raise ValueError(self._problems[name])
