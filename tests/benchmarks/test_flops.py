import numpy as np
import pytest

from benchmarks.flops import forward_flops, training_flops
from keras_deit.presets.catalog import ARCHITECTURES
from tests import witness
from tests.helpers import images, tiny_classifier


class Counting(np.ndarray):
    """Arrays that count the operations of their matrix products."""

    flops = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = [
            array.view(np.ndarray) if isinstance(array, Counting) else array for array in inputs
        ]
        if "out" in kwargs:
            kwargs["out"] = tuple(array.view(np.ndarray) for array in kwargs["out"])
        result = getattr(ufunc, method)(*plain, **kwargs)
        if ufunc is np.matmul:
            Counting.flops += 2 * result.size * plain[0].shape[-1]
        return result.view(Counting) if isinstance(result, np.ndarray) else result


@pytest.mark.parametrize("distilled", [True, False])
def test_flops_equal_a_count_of_products(distilled, rng):
    classifier = tiny_classifier({"use_distillation_token": distilled})
    config = classifier.backbone.get_config()
    weights = {
        path: array.view(Counting)
        for path, array in witness.weights_of(classifier.backbone).items()
    }
    Counting.flops = 0
    tokens = witness.backbone(images(rng, batch=1), weights, config)["output"]
    for head in classifier.head.weights:
        if head.path.endswith("kernel"):
            tokens[:, 0].view(Counting) @ np.asarray(head)
    heads = 2 if distilled else 1
    assert forward_flops(config, 5, heads) == Counting.flops
    assert training_flops(config, 5, heads) == 3 * Counting.flops


def test_published_figures():
    """GMACs of timm's tables: 1.26, 4.61, 17.58 and 55.54 (reference: pytorch-image-models,
    results/model_metadata-in1k.csv).
    """
    for name, gmacs in (
        ("deit_tiny_patch16_224", 1.26),
        ("deit_small_patch16_224", 4.61),
        ("deit_base_patch16_224", 17.58),
        ("deit_base_patch16_384", 55.54),
    ):
        assert forward_flops(ARCHITECTURES[name].backbone_config, 1000, 1) / 2e9 == pytest.approx(
            gmacs, abs=0.15
        )


def test_published_figure_of_token_merging():
    """2.7 GMACs of DeiT-S with 13 tokens merged in each block (reference: Bolya et al., 2023, table
    4).
    """
    config = ARCHITECTURES["deit_small_patch16_224"].backbone_config | {"num_merged_tokens": 13}
    assert forward_flops(config, 1000, 1) / 2e9 == pytest.approx(2.7, abs=0.1)


@pytest.mark.parametrize(
    "keep_rate, gmacs", [(0.9, 4.0), (0.8, 3.5), (0.7, 3.0), (0.6, 2.6), (0.5, 2.3)]
)
def test_published_figures_of_token_selection(keep_rate, gmacs):
    """GMACs of EViT's DeiT-S (reference: youweiliang/evit, README.md)."""
    config = ARCHITECTURES["deit_small_patch16_224"].backbone_config | {"keep_rate": keep_rate}
    assert forward_flops(config, 1000, 1) / 2e9 == pytest.approx(gmacs, abs=0.06)
