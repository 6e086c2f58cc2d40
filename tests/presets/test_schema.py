"""Every argument that a preset keeps has a kind, so that a file cannot smuggle in another value."""

import pytest

from keras_deit.layers import DeiTImageConverter
from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from keras_deit.models.from_preset import STORED_APART
from keras_deit.presets import schema
from keras_deit.presets.directory import parameters_of


@pytest.mark.parametrize(
    ("cls", "kinds"),
    [
        (DeiTBackbone, schema.BACKBONE),
        (DeiTImageClassifier, schema.CLASSIFIER),
        (DeiTImageConverter, schema.CONVERTER),
    ],
)
def test_every_argument_has_a_kind(cls, kinds):
    inherited = {"activity_regularizer", "autocast", "scale", "offset"}  # which are not saved
    arguments = set(parameters_of(cls)) - set(STORED_APART) - inherited
    assert set(kinds) == arguments
