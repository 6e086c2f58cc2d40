"""Averages of weights, beside NumPy's, and the greedy choice, worked by hand."""

import functools

import keras
import numpy as np
import pytest

from keras_deit.layers import DeiTImageConverter
from keras_deit.models import DeiTImageClassifier
from keras_deit.training import average_weights, greedy_soup
from tests.helpers import images, numpy, raises, randomize, tiny_classifier

pytestmark = pytest.mark.backend


@pytest.fixture
def presets(tmp_path):
    """Three presets with different weights, dropout and training settings."""
    for number in range(3):
        classifier = tiny_classifier(
            {"drop_path_rate": 0.1 * number, "num_layers": 2}, dropout_rate=0.2 * number
        )
        randomize(classifier, np.random.default_rng(number)).save_to_preset(tmp_path / f"{number}")
    return [tmp_path / f"{number}" for number in range(3)]


def weights_of(path):
    return DeiTImageClassifier.from_preset(path).get_weights()


def test_uniform_average(presets):
    loaded = []

    def load(path):
        loaded.append(path)
        return DeiTImageClassifier.from_preset(path)

    soup = average_weights(presets, load)
    assert loaded == presets
    assert isinstance(soup, DeiTImageClassifier) and soup.dropout_rate == 0.0
    expected = [
        np.mean(arrays, axis=0, dtype="float64") for arrays in zip(*map(weights_of, presets))
    ]
    assert len(expected) == len(soup.weights) > 20
    for found, array in zip(soup.get_weights(), expected):
        np.testing.assert_array_equal(found, array.astype("float32"))


def test_the_average_is_what_the_model_computes_with(presets, rng):
    soup = average_weights(presets[:2], DeiTImageClassifier.from_preset)
    inputs = images(rng)
    before = numpy(soup(inputs))
    other = DeiTImageClassifier.from_preset(presets[0])
    other.set_weights([(a + b) / 2 for a, b in zip(weights_of(presets[0]), weights_of(presets[1]))])
    np.testing.assert_allclose(numpy(other(inputs)), before, atol=1e-6)


def constant(value):
    bias = keras.initializers.Constant(value)
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, bias_initializer=bias)])


def test_greedy_soup_by_hand():
    """Biases 0, 3, 9 and 4.5; the score is the nearness to 4.

    Sorted by score: 4.5 (-0.5), 3 (-1), 0 (-4), 9 (-5). 4.5 and 3 have the mean 3.75: -0.25, better.
    With 0 the mean is 2.5: worse. With 9 it is 5.5: worse.
    """
    seen = []

    def evaluate(model):
        seen.append(float(model.get_weights()[1][0]))
        return -abs(seen[-1] - 4)

    soup = greedy_soup([0.0, 3.0, 9.0, 4.5], constant, evaluate)
    assert soup.ingredients == [4.5, 3.0]
    assert soup.score == -0.25
    assert soup.scores == {0.0: -4.0, 3.0: -1.0, 9.0: -5.0, 4.5: -0.5}
    assert seen == [0.0, 3.0, 9.0, 4.5, 3.75, 2.5, 5.5]
    np.testing.assert_array_equal(soup.model.get_weights()[1], [3.75] * 3)


def test_greedy_soup_adds_what_is_as_good():
    soup = greedy_soup([1.0, 2.0, 3.0], constant, lambda model: 0.5)
    assert soup.ingredients == [1.0, 2.0, 3.0]
    np.testing.assert_array_equal(soup.model.get_weights()[1], [2.0] * 3)


def test_the_best_model_alone_if_all_others_lower_the_score():
    soup = greedy_soup([5.0, 4.0, 9.0], constant, lambda model: -abs(model.get_weights()[1][0] - 4))
    assert (soup.ingredients, soup.score) == ([4.0], 0.0)
    np.testing.assert_array_equal(soup.model.get_weights()[1], [4.0] * 3)


def test_models_that_load_keeps_are_refused():
    """The average was written into one of them, which then counted with these weights."""
    scores = []

    def evaluate(model):
        scores.append(-abs(float(model.get_weights()[1][0]) - 1))
        return scores[-1]

    kept = {value: constant(value) for value in (1.0, 3.0, 6.0)}
    message = (
        "`load` must build a new model each time. Received: a model that it returned before, for "
    )
    for load in (kept.__getitem__, functools.cache(constant)):
        with raises(f"{message}1.0"):
            greedy_soup([1.0, 3.0, 6.0], load, evaluate)
    assert not scores  # nothing was evaluated in vain
    model = constant(2.0)
    with raises(f"{message}b"):
        average_weights(["a", "b"], lambda handle: model)


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(score):
    """NaN won: no other score is higher."""

    def evaluate(model):
        value = float(model.get_weights()[1][0])
        return score if value == bad else -abs(value - 1)

    start = (
        "`evaluate` must return a finite number. Leave the model out, or correct `evaluate`. "
        f"Received: {score} for "
    )
    bad = 1.0
    with raises(f"{start}1.0. Scores before: 3.0 has -2.0"):
        greedy_soup([3.0, 1.0, 5.0], constant, evaluate)
    bad = 2.0
    with raises(f"{start}the average of 1.0, 3.0. Scores before: 3.0 has -2.0; 1.0 has -0.0"):
        greedy_soup([3.0, 1.0], constant, evaluate)


@pytest.mark.parametrize(
    ("backbone", "classifier", "difference"),
    [
        ({"num_heads": 4}, {}, "backbone.num_heads is 2 and 4"),
        ({}, {"pooling": "mean", "use_distillation_head": False}, "pooling is 'token' and 'mean'"),
        ({}, {"labels": list("abcde")}, "labels is ['ant', 'bee', 'cat', 'dog', 'eel'] and ['a'"),
        ({}, {"num_classes": 2, "labels": None}, "num_classes is 5 and 2"),
        (
            {},
            {"preprocessor": DeiTImageConverter((12, 32), 0.9, data_format="channels_last")},
            "preprocessor.crop_ratio is 0.875 and 0.9",
        ),
    ],
)
def test_other_models_are_refused(backbone, classifier, difference):
    models = {"a": tiny_classifier(), "b": tiny_classifier(backbone, **classifier)}
    start = (
        "Only models with the same architecture, classes and preprocessing can be averaged. Leave "
        "one of them out. a and b differ: "
    )
    with pytest.raises(ValueError) as error:
        average_weights(["a", "b"], models.get)
    assert str(error.value).startswith(start) and difference in str(error.value)


def test_other_weights_are_refused():
    """Of a subclass whose configuration does not tell."""

    class Model(keras.Model):
        def __init__(self, units):
            super().__init__()
            self.dense = keras.layers.Dense(units)
            self.dense.build((None, 2))
            self.built = True

        def get_config(self):
            return {}

    with pytest.raises(ValueError, match=r"kernel has shape \(2, 3\) and \(2, 4\)"):
        average_weights([3, 4], Model)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
def test_quantized_models_and_adapters_are_refused():
    quantized = tiny_classifier({"num_layers": 1})
    quantized.quantize("int8")
    with pytest.raises(
        ValueError, match="Quantized weights cannot be averaged. Average the models"
    ):
        average_weights(["a", "b"], lambda name: quantized)
    adapted = tiny_classifier({"num_layers": 1})
    adapted.backbone.blocks[0].attention.qkv.enable_lora(2)
    with pytest.raises(ValueError, match="LoRA adapters cannot be averaged.*Received: a with"):
        average_weights(["a", "b"], lambda name: adapted)


@pytest.mark.parametrize("handles", [[], ["a"], ["a", "b", "a"], "ab"])
def test_too_few_models_are_refused(handles):
    shown = [handles] if isinstance(handles, str) else handles
    message = (
        "`handles` must be a sequence of two or more different names of models. Received: "
        f"handles={shown!r}"
    )
    for refuse in (
        lambda: average_weights(handles, constant),
        lambda: greedy_soup(handles, constant, len),
    ):
        with raises(message):
            refuse()
