"""The optimizers of recipes, beside the same steps in NumPy."""

import dataclasses

import keras
import numpy as np
import pytest

from keras_deit.training import RECIPES, TrainingCheckpoint
from tests.examples.test_using import torchvision  # noqa: F401
from tests.helpers import numpy, raises

pytestmark = pytest.mark.backend

DECAY, WEIGHT_DECAY, STEPS = 0.5, 0.1, 3
FACTORS = {"patch_embedding": 0.125, "block_0": 0.25, "block_1": 0.5, "head": 3.0}


def tiny_model():
    sizes = {"patch_embedding": 3, "block_0": 4, "block_1": 2, "head": 5}
    layers = [keras.layers.Dense(units, name=name) for name, units in sizes.items()]
    return keras.Sequential([keras.Input((2,)), *layers])


def recipe(**changes):
    return dataclasses.replace(
        RECIPES["deit"],
        **{
            "layer_decay": DECAY,
            "head_learning_rate_factor": 3.0,
            "weight_decay": WEIGHT_DECAY,
            "learning_rate": 0.01,
            "learning_rate_batch_size": None,
            "warmup_epochs": 0,
            "epochs": 1,
            "ema_momentum": None,
            **changes,
        },
    )


class Witness:
    """The rules of AdamW, LAMB and SGD in float64, for one variable."""

    def __init__(self, value):
        self.value, self.m, self.v, self.t = value.astype("float64"), 0.0, 0.0, 0

    def step(self, kind, gradient, rate):
        self.t += 1
        if self.value.ndim > 1:
            self.value = self.value * (1 - rate * WEIGHT_DECAY)
        if kind == "sgd":
            self.m = 0.9 * self.m - rate * gradient
            self.value = self.value + self.m
            return
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        update = m / (np.sqrt(v) + 1e-8)
        if kind == "lamb":
            sizes = np.linalg.norm(self.value), np.linalg.norm(update)
            update = update * (sizes[0] / sizes[1] if min(sizes) > 0 else 1.0)
        self.value = self.value - rate * update


def trained_beside_numpy(rng, kind, accumulation=1, **arguments):
    """The trained model, its optimizer, and a witness for each variable."""
    model, of_training = tiny_model(), recipe(optimizer=kind)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    witnesses = [Witness(numpy(variable)) for variable in model.trainable_variables]
    if accumulation > 1:
        arguments["gradient_accumulation_steps"] = accumulation
    optimizer = of_training.build_optimizer(model, STEPS, **arguments)
    optimizer.build(model.trainable_variables)
    schedule = of_training.build_schedule(STEPS)
    for step in range(STEPS):
        sums = [np.zeros(variable.shape) for variable in model.trainable_variables]
        for part in range(accumulation):
            gradients = [rng.normal(size=total.shape).astype("float32") for total in sums]
            sums = [total + gradient for total, gradient in zip(sums, gradients)]
            count = step * accumulation + part
            optimizer.apply(
                [keras.ops.convert_to_tensor(gradient) for gradient in gradients],
                model.trainable_variables,
            )
        gradients = [total / accumulation for total in sums]
        if "global_clipnorm" in arguments:
            norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
            scale = min(1.0, arguments["global_clipnorm"] / norm)
            gradients = [scale * gradient for gradient in gradients]
        rate = float(numpy(schedule(count)))
        for variable, witness, gradient in zip(model.trainable_variables, witnesses, gradients):
            witness.step(kind, gradient, FACTORS[variable.path.split("/")[-2]] * rate)
    return model, optimizer, witnesses


@pytest.mark.parametrize(
    ("kind", "accumulation", "arguments"),
    [
        ("adamw", 1, {}),
        ("lamb", 1, {}),
        ("sgd", 1, {}),
        ("adamw", 2, {}),
        # Over all variables. A `MultiOptimizer` would clip each group by itself.
        ("sgd", 1, {"global_clipnorm": 0.5}),
    ],
)
def test_steps_are_those_of_numpy(kind, accumulation, arguments, rng):
    model, _, witnesses = trained_beside_numpy(rng, kind, accumulation, **arguments)
    for variable, witness in zip(model.trainable_variables, witnesses):
        # Adam's 1 - 0.999 ** step has four digits in float32.
        np.testing.assert_allclose(numpy(variable), witness.value, atol=2e-5, err_msg=variable.path)


def momenta(steps, highest=0.6, accumulation=1):
    """The momentum of each step, as the optimizer has it."""
    model = tiny_model()
    arguments = {"gradient_accumulation_steps": accumulation} if accumulation > 1 else {}
    optimizer = recipe(ema_momentum=highest, ema_warmup=True).build_optimizer(
        model, steps, **arguments
    )
    optimizer.build(model.trainable_variables)
    found = []
    for _ in range(steps):
        found.append(float(numpy(optimizer.ema_momentum)))
        optimizer.apply([keras.ops.ones(v.shape) for v in model.trainable_variables])
    return found


def test_the_momentum_rises():
    # 1 - (1 + step) ** (-2 / 3), at most 0.6
    np.testing.assert_allclose(
        momenta(5), [0.0, 1 - 2 ** (-2 / 3), 1 - 3 ** (-2 / 3), 0.6, 0.6], rtol=1e-6
    )
    # Two steps that accumulate gradients are one: 0.37 of the average remains after both.
    np.testing.assert_allclose(
        np.square(momenta(4, highest=0.9, accumulation=2)),
        [0, 0, *[1 - 2 ** (-2 / 3)] * 2],
        rtol=1e-6,
    )


@pytest.mark.peer
def test_the_momentum_is_that_of_timm(torchvision):  # noqa: F811
    import torch
    from timm.utils import ModelEmaV3

    average = ModelEmaV3(torch.nn.Linear(1, 1), decay=0.6, use_warmup=True)
    # timm counts from 1.
    expected = [average.get_decay(step + 1) for step in range(6)]
    np.testing.assert_allclose(momenta(6), expected, rtol=1e-6)


def compiled(policy="float32"):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    model, chosen = tiny_model(), recipe(ema_momentum=0.9, ema_warmup=True)
    optimizer = chosen.build_optimizer(model, 2)
    model.compile(optimizer, chosen.build_loss(), auto_scale_loss=True)
    return model


def fit(model, *callbacks, epochs, initial_epoch=0):
    x, y = np.random.default_rng(0).normal(size=(4, 2)), np.eye(5)[[0, 1, 2, 3]]
    model.fit(
        x,
        y,
        batch_size=2,
        epochs=epochs,
        initial_epoch=initial_epoch,
        callbacks=list(callbacks),
        validation_data=(x, y),
        shuffle=False,
        verbose=0,
    )


def state(model):
    return [numpy(variable) for variable in (*model.variables, *model.optimizer.variables)]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])  # the last one scales the loss
def test_resumes_exactly_with_a_rising_momentum_and_swapped_weights(policy, tmp_path):
    unbroken, resumed = compiled(policy), compiled(policy)
    fit(unbroken, keras.callbacks.SwapEMAWeights(), epochs=3)
    first = compiled(policy)
    fit(first, keras.callbacks.SwapEMAWeights(), TrainingCheckpoint(tmp_path), epochs=2)
    assert TrainingCheckpoint(tmp_path).restore(resumed) == 2
    fit(resumed, keras.callbacks.SwapEMAWeights(), epochs=3, initial_epoch=2)
    for found, expected in zip(state(resumed), state(unbroken), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_a_saved_model_trains_on_as_the_original(tmp_path):
    """Keras' own optimizers forget which variables do not decay."""
    model = compiled()
    fit(model, epochs=1)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    gradients = [keras.ops.ones(v.shape) for v in model.trainable_variables]
    for one in (model, loaded):
        one.optimizer.apply(gradients, one.trainable_variables)
    for found, expected in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(numpy(found), numpy(expected), err_msg=expected.path)


@pytest.mark.slow
def test_a_model_with_averages_trains_on_after_predicting(tmp_path):
    """On JAX, Keras' own optimizer fails: its averages and the weights share arrays that a step
    deletes.
    """
    model = compiled()
    fit(model, epochs=1)
    model.predict(np.zeros((2, 2)), verbose=0)
    model.save(tmp_path / "model.keras")
    fit(model, epochs=1)


def test_what_belongs_to_the_recipe():
    model = tiny_model()
    with raises(
        "`weight_decay` belongs to the recipe. Use `dataclasses.replace(recipe, weight_decay=...)`. "
        "Received: weight_decay=0.1"
    ):
        recipe().build_optimizer(model, 1, weight_decay=0.1)
    with raises(
        "The optimizer of a recipe decays kernels only, and takes no further exclusions. For no "
        "weight decay, use `dataclasses.replace(recipe, weight_decay=0.0)`."
    ):
        recipe().build_optimizer(model, 1).exclude_from_weight_decay(var_names=["kernel"])
