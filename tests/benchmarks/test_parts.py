"""The table of parts, for given times."""

from benchmarks import digits
from keras_deit.models import DeiTImageClassifier
from tests.scripts import load_script, set_flags


def test_the_rest_is_the_whole_less_its_parts():
    module = load_script("benchmarks/parts.py")
    set_flags(module, preset=digits.PRESET, batch_size=2)
    classifier = DeiTImageClassifier.from_preset(
        digits.PRESET, load_weights=False, preprocessor=None
    )
    listed = module.parts(classifier, 2)
    seconds = {
        **dict.fromkeys(listed, 0.001),
        "whole model": 0.1,
        "attention, with its products": 0.01,
    }
    _, _, *lines = module.report(listed, seconds, classifier).splitlines()
    rows = {
        name.strip(): [cell.strip() for cell in cells]
        for _, name, *cells, _ in (line.split("|") for line in lines)
    }
    # Four blocks: 4 * 10 ms, of which the products of query, key, value and projection took 8.
    assert rows["attention, between its products"][:3] == ["4", "32.0", "0.32"]
    # Two LayerNorms and two sums in each block, and the last LayerNorm.
    assert rows["LayerNorm"][:3] == ["9", "9.0", "0.09"]
    assert rows["sum with the residual"][:3] == ["8", "8.0", "0.08"]
    # 100 ms less 32, and less 1 ms for each of 35 other parts.
    assert rows["the whole less its parts"][1:3] == ["33.0", "0.33"]
