import keras
import pytest

from keras_deit.models import DeiTBackbone, DeiTImageClassifier
from keras_deit.presets.catalog import ARCHITECTURES, BUILT_IN


@pytest.fixture
def shapes_alone():
    """Models whose weights are never allocated: the largest of the catalog takes 2.5 GB."""
    with keras.StatelessScope(initialize_variables=False):
        yield
    # Keras would allocate them at the end of the next such scope.
    keras.utils.clear_session()


def test_names():
    names = list(ARCHITECTURES)
    assert len(names) == 24
    assert sum(name.startswith("deit_") for name in names) == 8
    assert "deit_base_distilled_patch16_384" in names
    assert "deit3_base_patch16_224_in21k" in names
    assert (
        ARCHITECTURES["deit3_huge_patch14_224_in21k"].timm_repository
        == "timm/deit3_huge_patch14_224.fb_in22k_ft_in1k"
    )
    assert (
        ARCHITECTURES["deit_tiny_patch16_224"].timm_repository
        == "timm/deit_tiny_patch16_224.fb_in1k"
    )


@pytest.mark.parametrize("cls", [DeiTBackbone, DeiTImageClassifier])
def test_presets_list_every_name(cls):
    assert set(cls.presets) == {*BUILT_IN, *ARCHITECTURES}
    assert cls.presets["deit_tiny_patch16_224"]["parameters"] == 5_717_416
    with pytest.raises(TypeError):
        cls.presets["mine"] = {}


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if not name.endswith("_in21k")])
def test_parameters_equal_the_published_ones(name, shapes_alone):
    classifier = DeiTImageClassifier.from_preset(name, load_weights=False)
    row = ARCHITECTURES[name]
    assert classifier.count_params() == row.parameters
    assert classifier.preprocessor.crop_ratio == (1.0 if name.startswith("deit3") else 0.875)
    assert classifier.preprocessor.image_size == (row.image_size, row.image_size)
    assert classifier.backbone.num_prefix_tokens == (2 if row.distilled else 1)
    assert classifier.backbone.layer_norm_epsilon == 1e-6


def test_in21k_is_the_same_architecture():
    for name, row in ARCHITECTURES.items():
        if row.in21k:
            plain = ARCHITECTURES[name.removesuffix("_in21k")]
            assert row.backbone_config == plain.backbone_config
            assert row.parameters == plain.parameters
