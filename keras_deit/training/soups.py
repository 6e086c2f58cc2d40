"""Averages of the weights of several fine-tuned models: uniform and greedy "soups"."""

import dataclasses
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

# What may differ between models with the same function of the same weights.
_FREE = {
    "name",
    "trainable",
    "dtype",
    "seed",
    "dropout_rate",
    "attention_dropout_rate",
    "drop_path_rate",
    "drop_path_schedule",
    "patch_dropout_rate",
    "layer_scale_init_value",
    "remat",
    # Of Keras' own models: their layers' names
    "inbound_nodes",
    "input_layers",
    "output_layers",
}
_MOST_LISTED = 5


@dataclasses.dataclass(frozen=True)
class GreedySoup:
    """What `greedy_soup` returns.

    Args:
        model: the model with the averaged weights.
        ingredients: the handles of the models in the average, the best one first.
        score: score of the average.
        scores: `{handle: score}` of each model alone.
    """

    model: keras.Model
    ingredients: list
    score: float
    scores: dict


def average_weights(handles: Sequence, load: Callable[[Any], keras.Model]) -> keras.Model:
    """Averages the weights of several models: a "uniform soup".

    `w = (w_1 + ... + w_n) / n` for every weight, summed in float64.

    Models that were fine-tuned from the same checkpoint with different seeds, learning rates or
    augmentations often average to a better model, at the cost of one model. Averages of models
    trained from scratch do not work.

    Args:
        handles: sequence of two or more different names of models, such as paths of presets.
        load: function from a name to a Keras model, such as `DeiTImageClassifier.from_preset`. It
            is called once for each name, and must build a new model each time. Two models and the
            sum are in memory at a time.

    Returns:
        The first model, with the averaged weights.

    Raises:
        ValueError: if there are fewer than two names or one is there twice, `load` returns a model
            for the second time, the architectures, classes or preprocessors differ, or a model is
            quantized or has LoRA adapters.

    Example:

    >>> def load(bias):  # in practice, DeiTImageClassifier.from_preset
    ...     bias = keras.initializers.Constant(bias)
    ...     layers = [keras.Input((1,)), keras.layers.Dense(2, bias_initializer=bias)]
    ...     return keras.Sequential(layers)
    >>> soup = keras_deit.training.average_weights([1.0, 2.0, 6.0], load)
    >>> soup.get_weights()[1]
    (3.0, 3.0)

    Reference: [Wortsman et al., 2022](https://arxiv.org/abs/2203.05482).
    """
    handles = _checked_handles(handles)
    ingredients = _Ingredients(load, handles[0])
    for handle in handles[1:]:
        ingredients.add(ingredients.weights_of(handle))
    ingredients.assign(ingredients.mean())
    return ingredients.model


def greedy_soup(
    handles: Sequence,
    load: Callable[[Any], keras.Model],
    evaluate: Callable[[keras.Model], float],
) -> GreedySoup:
    """Averages those of several models that together score best: a "greedy soup".

    The models are sorted by their own score. Starting with the best, each is added to the average
    unless this lowers the average's score. So on the data of `evaluate` the soup is at least as
    good as the best model; measure it on other data.

    Args:
        handles, load: see `average_weights`. `load` is called twice for each name, and once more
            for the first.
        evaluate: function from a model to its score, a finite number, the higher the better, such
            as its accuracy on validation images. It is called `2 * len(handles) - 1` times, always
            with the same model, whose weights change.

    Returns:
        A `GreedySoup` with `model`, `ingredients`, `score` and `scores`.

    Raises:
        ValueError: see `average_weights`; or if a score is not finite.

    Example:

    >>> def load(bias):  # in practice, DeiTImageClassifier.from_preset
    ...     bias = keras.initializers.Constant(bias)
    ...     layers = [keras.Input((1,)), keras.layers.Dense(2, bias_initializer=bias)]
    ...     return keras.Sequential(layers)
    >>> def evaluate(model):  # the nearer to 4, the better
    ...     return -abs(float(model.get_weights()[1][0]) - 4)
    >>> soup = keras_deit.training.greedy_soup([1.0, 3.0, 6.0], load, evaluate)
    >>> soup.ingredients  # their mean is 4.5
    (3.0, 6.0)

    Reference: [Wortsman et al., 2022](https://arxiv.org/abs/2203.05482), recipe 1.
    """
    handles = _checked_handles(handles)
    ingredients = _Ingredients(load, handles[0])
    scores: dict[Any, float] = {}
    # The first one, too, so that a `load` that keeps its models is refused before any evaluation.
    for handle in handles:
        ingredients.assign(ingredients.weights_of(handle))
        scores[handle] = _score(evaluate, ingredients.model, [handle], scores)
    best, *others = sorted(handles, key=lambda handle: -scores[handle])
    score, chosen = scores[best], [best]
    ingredients.start_with(ingredients.weights_of(best))
    for handle in others:
        arrays = list(ingredients.weights_of(handle))
        ingredients.assign(ingredients.mean(arrays))
        with_this = _score(evaluate, ingredients.model, [*chosen, handle], scores)
        if with_this >= score:
            ingredients.add(arrays)
            chosen.append(handle)
            score = with_this
    ingredients.assign(ingredients.mean())
    return GreedySoup(ingredients.model, chosen, score, scores)


def _score(evaluate, model, ingredients, scores):
    """A finite score. An error tells those known before, so that no evaluation is lost."""
    score = float(evaluate(model))
    if not math.isfinite(score):
        of = (
            f"{'the average of ' if len(ingredients) > 1 else ''}{', '.join(map(str, ingredients))}"
        )
        known = "; ".join(f"{handle} has {known}" for handle, known in scores.items())
        raise ValueError(
            "`evaluate` must return a finite number. Leave the model out, or correct `evaluate`. "
            f"Received: {score} for {of}. Scores before: {known or 'none'}"
        )
    return score


class _Ingredients:
    """The sum of the weights of some models, and a model to put averages into.

    Arrays are taken one by one, so that no copy of a model is held that is not needed.
    """

    def __init__(self, load, first):
        self._load, self._first = load, first
        self._returned = weakref.WeakSet()
        self.model = self._new_model(first)
        _refuse_unaveragable(self.model, first)
        self.start_with(_arrays(self.model))

    def start_with(self, arrays):
        # A copy: arrays of PyTorch share the memory of the model.
        self._sums = [np.array(array, "float64") for array in arrays]
        self._count = 1

    def weights_of(self, handle):
        """Loads a model that fits the first one and yields its weights."""
        model = self._new_model(handle)
        _refuse_unaveragable(model, handle)
        different = _differences(self.model, model)
        if different:
            more = len(different) - _MOST_LISTED
            raise ValueError(
                "Only models with the same architecture, classes and preprocessing can be "
                f"averaged. Leave one of them out. {self._first} and {handle} differ: "
                f"{'; '.join(different[:_MOST_LISTED])}{f'; and {more} more' if more > 0 else ''}"
            )
        return _arrays(model)

    def _new_model(self, handle):
        """`self.model` is overwritten, so that loading it again would give other weights."""
        model = self._load(handle)
        if model in self._returned:
            raise ValueError(
                "`load` must build a new model each time. Received: a model that it returned "
                f"before, for {handle}"
            )
        self._returned.add(model)
        return model

    def add(self, arrays):
        for total, array in zip(self._sums, arrays):
            total += array
        self._count += 1

    def mean(self, more=None):
        """Yields the averaged weights, with those of one more model if given."""
        if more is None:
            return (total / self._count for total in self._sums)
        return ((total + array) / (self._count + 1) for total, array in zip(self._sums, more))

    def assign(self, arrays):
        for variable, array in zip(self.model.weights, arrays):
            variable.assign(array)


def _arrays(model):
    return (keras.ops.convert_to_numpy(variable) for variable in model.weights)


def _checked_handles(handles):
    handles = [handles] if isinstance(handles, str) else list(handles)
    if len(handles) < 2 or len(set(handles)) < len(handles):
        raise ValueError(
            "`handles` must be a sequence of two or more different names of models. Received: "
            f"handles={handles!r}"
        )
    return handles


def _refuse_unaveragable(model, handle):
    for variable in model.weights:
        if not keras.backend.is_float_dtype(variable.dtype):
            raise ValueError(
                "Quantized weights cannot be averaged. Average the models first, and quantize the "
                f"result. Received: {handle} with {variable.path} of type {variable.dtype}"
            )
        if "lora_kernel" in variable.path:
            raise ValueError(
                "LoRA adapters cannot be averaged: the mean of products is not the product of "
                "means. `save_to_preset` merges them into the weights; load the model from there. "
                f"Received: {handle} with {variable.path}"
            )


def _differences(first, second):
    """What differs between two models, in words: their settings, or else their weights."""
    before, after = ({}, {})
    for model, found in ((first, before), (second, after)):
        _flatten(model.get_config(), "", found)
    different = [
        f"{name} is {_short(before.get(name))} and {_short(after.get(name))}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]
    if different:
        return different
    if len(first.weights) != len(second.weights):
        return [f"they have {len(first.weights)} and {len(second.weights)} weights"]
    return [
        f"{ours.path} has shape {tuple(ours.shape)} and {tuple(theirs.shape)}"
        for ours, theirs in zip(first.weights, second.weights)
        if tuple(ours.shape) != tuple(theirs.shape)
    ]


def _flatten(value, name, found):
    """Collects {dotted name: value} of a config, without what may differ."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in _FREE and not key.endswith("initializer"):
                shown = name if key == "config" else f"{name}.{key}".lstrip(".")
                _flatten(inner, shown, found)
    elif isinstance(value, (list, tuple)) and any(isinstance(each, dict) for each in value):
        for index, inner in enumerate(value):
            _flatten(inner, f"{name}[{index}]", found)
    else:
        found[name] = list(value) if isinstance(value, tuple) else value


def _short(value):
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
