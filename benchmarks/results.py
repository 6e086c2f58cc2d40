"""Rows of measurements as JSON lines: read, checked, added to."""

import dataclasses
import json
import os
import pathlib

FORMAT = 3
# What makes two rows of one file the same measurement.
KEY = (
    "machine",
    "subject",
    "preset",
    "mode",
    "backend",
    "dtype",
    "jit",
    "requested_batch_size",
    "device",
    "image_size",
    "num_layers",
    "timing",
)


def read(path, names=KEY):
    """The rows of a file, or none if it is not there; of one measurement that was taken twice, the
    later.

    Args:
        names: of what makes two rows the same measurement; by default, of timed ones.
    """
    path = pathlib.Path(path)
    rows = {}
    if not path.exists():
        return []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}, is not JSON: {error}. Remove the line, or give another "
                "--output."
            ) from error
        if not isinstance(row, dict) or row.get("format") != FORMAT:
            raise ValueError(
                f"{path}, line {number}, is of format "
                f"{row.get('format') if isinstance(row, dict) else row!r}; this version reads "
                f"and writes format {FORMAT}. Give another --output."
            )
        rows.pop(key(row, names), None)  # rows of one group stay together
        rows[key(row, names)] = row
    return list(rows.values())


def append(path, rows):
    """Adds rows; what is there stays as it is, also if the process is killed between two of
    them.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps({"format": FORMAT, **row}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def of_machine(path, machine):
    """The rows of a file that is this machine's, or `ValueError`: a file has one machine's rows."""
    rows = read(path)
    others = {row["machine"] for row in rows} - {machine}
    if others:
        raise ValueError(
            f"{path} has the rows of another machine ({others.pop()}); this is {machine}. Give "
            "each machine its own --output."
        )
    return rows


def model_name(row):
    """The preset, and in what it differs from its own."""
    size = "" if row["image_size"] is None else f" at {row['image_size']}"
    depth = "" if row["num_layers"] is None else f" of {row['num_layers']} blocks"
    return f"{row['preset']}{size}{depth}"


def key(row, names=KEY):
    return tuple(row[name] for name in names)


def key_of(request, common):
    """The key of the row that a request will have."""
    asked = {"requested_batch_size": request.batch_size}
    return key({**common, **dataclasses.asdict(request), **asked})


def done(rows, retry=False):
    """Keys that need no measurement; to `retry` is to measure again what failed or was missing."""
    settled = ("measured", "not supported")
    return {key(row) for row in rows if not retry or row["status"] in settled}
