"""Rows of measurements in a file of JSON lines."""

import dataclasses
import json
import os
import pathlib

FORMAT = 3
# Fields that identify a measurement
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


def read(path, names=KEY, defaults=None):
    """The rows of a file, or none if it does not exist. Of two rows of one measurement, the later.

    Args:
        names: fields that identify a measurement. Defaults to those of timed ones.
        defaults: dict, values of fields that older rows lack. Defaults to `None`.
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
                f"{path}, line {number}, is not JSON. Remove the line or use another file. {error}"
            ) from error
        if not isinstance(row, dict) or row.get("format") != FORMAT:
            raise ValueError(
                f"{path}, line {number}: Expected a row of format {FORMAT}. Use another file. "
                f"Received: {row.get('format') if isinstance(row, dict) else row!r}"
            )
        row = {**(defaults or {}), **row}
        rows.pop(key(row, names), None)  # keeps the rows of a group together
        rows[key(row, names)] = row
    return list(rows.values())


def append(path, rows):
    """Appends rows one by one. Killing the process loses at most the row being written."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps({"format": FORMAT, **row}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def of_machine(path, machine):
    """The rows of a file. Raises `ValueError` if it contains another machine's."""
    rows = read(path)
    others = {row["machine"] for row in rows} - {machine}
    if others:
        raise ValueError(
            f"--output {path} contains rows of another machine, {others.pop()}; this is {machine}. "
            "Use one file per machine."
        )
    return rows


def model_name(row):
    """The preset, and how its size differs from the published one."""
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
    """Keys that need no measurement. With `retry`, failed ones and missing packages do."""
    settled = ("measured", "not supported")
    return {key(row) for row in rows if not retry or row["status"] in settled}
