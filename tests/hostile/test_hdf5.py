"""Weights files of version 0.1 that read other files or take all memory."""

import hashlib
import json

import h5py
import numpy as np
import pytest

from tests.hostile.conftest import refusal

ARRAY = "layers/layer_normalization/vars/0"


def soft_link(file, secret):
    del file[ARRAY]
    file[ARRAY] = h5py.SoftLink("/layers/layer_normalization/vars/1")


def external_link(file, secret):
    with h5py.File(secret, "w") as other:
        other["stolen"] = np.ones(8, "float32")
    del file[ARRAY]
    file[ARRAY] = h5py.ExternalLink(str(secret), "stolen")


def link_in_a_group_between(file, secret):
    with h5py.File(secret, "w") as other:
        other["vars/0"] = other["vars/1"] = np.ones(8, "float32")
    del file["layers/layer_normalization"]
    file["layers/layer_normalization"] = h5py.ExternalLink(str(secret), "/")


def external_storage(file, secret):
    secret.write_bytes(b"s" * 32)
    del file[ARRAY]
    file.create_dataset(ARRAY, (8,), "float32", external=[(str(secret), 0, 32)])


def virtual_storage(file, secret):
    with h5py.File(secret, "w") as other:
        other["stolen"] = np.ones(8, "float32")
    layout = h5py.VirtualLayout((8,), "float32")
    layout[:] = h5py.VirtualSource(str(secret), "stolen", (8,))
    del file[ARRAY]
    file.create_virtual_dataset(ARRAY, layout)


def shape_bomb(file, secret):
    del file[ARRAY]
    file.create_dataset(ARRAY, (2**40,), "float32", chunks=(2**20,))


def compressed_bomb(file, secret):
    del file[ARRAY]
    file.create_dataset(ARRAY, (2**24,), "float32", compression="gzip", fillvalue=1)


def contiguous_bomb(file, secret):
    """Without data, so the file stays small."""
    del file[ARRAY]
    file.create_dataset(ARRAY, (2**40,), "float32")


def compound(file, secret):
    del file[ARRAY]
    file[ARRAY] = np.zeros(8, [("a", "f4"), ("b", "i4")])


def text(file, secret):
    del file[ARRAY]
    file[ARRAY] = ["a"] * 8


def one_more(file, secret):
    file["layers/one_more/vars/0"] = np.ones(3, "float32")


def a_circle(file, secret):
    file["layers/again"] = file["layers"]


def two_ways_to_each_group(file, secret):
    """2**40 ways to the last one."""
    group = file["layers"]
    for _ in range(40):
        inner = group.create_group("a")
        group["b"] = inner
        group = inner


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (soft_link, "/layers/layer_normalization/vars/0 is a link of class SoftLink"),
        # CVE-2026-1669
        (external_link, "/layers/layer_normalization/vars/0 is a link of class ExternalLink"),
        (external_storage, "vars/0 is stored in another file"),
        # keras issue 23168
        (link_in_a_group_between, "/layers/layer_normalization is a link of class ExternalLink"),
        (virtual_storage, "vars/0 is stored in another file"),
        # CVE-2026-0897
        (shape_bomb, "vars/0 has shape (1099511627776,) and stores 0 bytes"),
        (compressed_bomb, "vars/0 has shape (16777216,) and stores "),
        (contiguous_bomb, "vars/0 has shape (1099511627776,) and stores 0 bytes"),
        (compound, "vars/0 has [('a', '<f4'), ('b', '<i4')] for numbers"),
        (text, "vars/0 has object for numbers"),
        (one_more, "are not those that `metadata.json` lists: (3,)"),
        (a_circle, "/layers/again is there twice"),
        (two_ways_to_each_group, " is there twice"),
    ],
)
def test_an_hdf5_file_with_more_than_arrays_is_refused(change, problem, old_preset, secret):
    weights = old_preset / "model.weights.h5"
    with h5py.File(weights, "a") as file:
        change(file, secret)
    metadata = json.loads((old_preset / "metadata.json").read_text())
    metadata["weights"][weights.name]["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    (old_preset / "metadata.json").write_text(json.dumps(metadata))
    message = refusal(old_preset)
    assert str(weights) in message and problem in message
