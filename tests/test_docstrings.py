"""The examples in docstrings run and say what they say they do."""

import ast
import doctest

import keras
import numpy as np
import pytest

import keras_deit
from keras_deit import layers, models, quantization, training, visualization

pytestmark = pytest.mark.backend

PUBLIC = {**vars(layers), **vars(models)}
CLASSES = [
    PUBLIC[name] for name in (*layers.__all__, *models.__all__) if isinstance(PUBLIC[name], type)
]


FUNCTIONS = [
    models.DeiTImageClassifier.enable_lora,
    quantization.smooth,
    training.average_weights,
    training.freeze_blocks,
    training.greedy_soup,
    training.train_only,
    visualization.attention_maps,
    visualization.attention_model,
    visualization.attention_rollout,
    visualization.patch_filters,
    visualization.position_similarity,
]


@pytest.mark.parametrize("documented", [*CLASSES, *FUNCTIONS])
def test_examples_run(documented):
    names = {**PUBLIC, **vars(training), "keras": keras, "keras_deit": keras_deit, "np": np}
    examples = doctest.DocTestParser().get_examples(documented.__doc__)
    assert any(example.want for example in examples)
    for example in examples:
        if example.want:
            # Shapes and arrays print differently on each backend; their values are the same.
            value = eval(example.source, names)
            value = keras.ops.convert_to_numpy(value) if keras.ops.is_tensor(value) else value
            assert tuple(float(v) for v in value) == ast.literal_eval(example.want)
        else:
            exec(example.source, names)


@pytest.mark.parametrize("cls", CLASSES)
def test_sections_stand_in_order(cls):
    sections = ["Args:", "Input shape:", "Output shape:", "Raises:", "Example:", "Reference"]
    places = [cls.__doc__.find(f"\n    {section}") for section in sections]
    assert -1 not in places
    assert places == sorted(places)
