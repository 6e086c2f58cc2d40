"""What is known of a model before it is built."""

import pytest

from keras_deit.presets.architecture import num_parameters
from keras_deit.presets.catalog import ARCHITECTURES
from tests.helpers import tiny_backbone


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"use_distillation_token": True},
        {"position_scope": "patches", "layer_scale_init_value": 1e-4},
        {"image_shape": (3, 12, 32), "data_format": "channels_first", "patch_size": 4},
    ],
)
def test_parameters_are_counted_without_building(overrides):
    backbone = tiny_backbone(**overrides)
    assert num_parameters(backbone.get_config()) == backbone.count_params()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_published_models_have_the_published_number_of_parameters(name):
    row = ARCHITECTURES[name]
    heads = 2 if row.distilled else 1
    head = 1000 * (row.backbone_config["hidden_dim"] + 1)
    assert num_parameters(row.backbone_config) + heads * head == row.parameters
