import keras
import numpy as np
import pytest

from keras_deit.models import DeiTDistiller
from keras_deit.training import RECIPES, MixedLabelBinaryCrossentropy
from tests.helpers import numpy, raises, tiny_classifier

STEPS = 100  # of an epoch


def rates(schedule, steps):
    return [float(numpy(schedule(step))) for step in steps]


@pytest.mark.parametrize(
    ("name", "batch_size", "highest", "last"),
    [
        ("deit", 1024, 1e-3, 1e-5),  # 5e-4 * 1024 / 512
        ("deit", 256, 2.5e-4, 1e-5),
        ("deit_fine_tune_384", 512, 5e-6, 5e-6),
        ("deit3_small", 2048, 4e-3, 1e-5),
        ("deit3_small", 256, 4e-3, 1e-5),  # not scaled
        ("deit3_base_fine_tune_384", 512, 1e-5, 1e-5),
    ],
)
def test_learning_rate_rises_in_a_line_and_falls_by_a_cosine(name, batch_size, highest, last):
    recipe = RECIPES[name]
    schedule = recipe.build_schedule(STEPS, batch_size=batch_size)
    warmup, steps = recipe.warmup_epochs * STEPS, recipe.epochs * STEPS
    middle = warmup + (steps - warmup) // 2
    expected = [1e-6, 1e-6 + (highest - 1e-6) / 2, highest, (highest + last) / 2, last, last]
    np.testing.assert_allclose(rates(schedule, [0, warmup // 2, warmup, middle, steps, steps + 7]), expected, rtol=1e-3)


def test_shorter_training_keeps_the_share_of_the_warmup():
    schedule = RECIPES["deit"].build_schedule(steps_per_epoch=12, epochs=30, batch_size=512)
    assert schedule.warmup_steps == 6  # 5 of 300 epochs
    np.testing.assert_allclose(rates(schedule, [6, 360]), [5e-4, 1e-5], rtol=1e-3)
    with raises("`epochs` must be a positive integer. Received: epochs=0"):
        RECIPES["deit"].build_schedule(12, epochs=0)
    with raises("`steps_per_epoch` must be a positive integer. Received: steps_per_epoch=0.5"):
        RECIPES["deit"].build_schedule(0.5)


@pytest.mark.parametrize("distilled", [False, True])
def test_biases_norms_scales_positions_and_prefix_tokens_do_not_decay(distilled):
    model = tiny_classifier({"layer_scale_init_value": 0.1, "num_layers": 1})
    model = DeiTDistiller(model, None) if distilled else model
    start = {v.path: numpy(v) + 1.0 for v in model.trainable_variables}
    for variable in model.trainable_variables:
        variable.assign(start[variable.path])
    optimizer = RECIPES["deit"].build_optimizer(model, STEPS, ema_momentum=None)
    optimizer.build(model.trainable_variables)
    optimizer.iterations.assign(5 * STEPS)  # the end of the warm-up, where the rate is 1e-3
    zeros = [keras.ops.zeros(v.shape) for v in model.trainable_variables]
    optimizer.apply(zeros, model.trainable_variables)
    decayed = {v.path.split("/", 1)[-1] for v in model.trainable_variables if np.abs(numpy(v) - start[v.path]).max() > 1e-6}
    kernels = {v.path.split("/", 1)[-1] for v in model.trainable_variables if v.name == "kernel"}
    assert decayed == kernels
    kernel = next(v for v in model.trainable_variables if v.name == "kernel")
    np.testing.assert_allclose(numpy(kernel), start[kernel.path] * (1 - 1e-3 * 0.05), rtol=1e-6)


def test_optimizers_are_those_of_the_recipe():
    model = tiny_classifier({"num_layers": 1})
    kinds = {name: type(recipe.build_optimizer(model, STEPS)).__name__ for name, recipe in RECIPES.items()}
    assert kinds["deit"] == kinds["deit3_base_fine_tune_224"] == "AdamW"
    assert kinds["deit3_huge"] == kinds["deit3_large_in21k"] == "Lamb"
    assert kinds["deit_transfer"] == "SGD"
    optimizer = RECIPES["deit"].build_optimizer(model, STEPS, gradient_accumulation_steps=2)
    assert optimizer.use_ema
    assert optimizer.ema_momentum == 0.99996
    assert optimizer.gradient_accumulation_steps == 2
    assert optimizer.epsilon == 1e-8


def test_losses_of_mixed_labels(rng):
    logits = rng.normal(size=(3, 5)).astype("float32")
    labels = np.asarray([[0.7, 0, 0.3, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0.01, 0.99, 0]], "float32")
    p = 1 / (1 + np.exp(-logits.astype("float64")))
    every = labels > 0
    expected = -(every * np.log(p) + ~every * np.log(1 - p)).mean()
    loss = RECIPES["deit3_small"].build_loss()
    np.testing.assert_allclose(numpy(loss(labels, logits)), expected, atol=1e-6)
    again = MixedLabelBinaryCrossentropy.from_config(loss.get_config())
    np.testing.assert_allclose(numpy(again(labels, logits)), expected, atol=1e-6)
    smooth = labels * 0.9 + 0.1 / 5
    log_q = logits - np.log(np.exp(logits.astype("float64")).sum(-1, keepdims=True))
    np.testing.assert_allclose(numpy(RECIPES["deit"].build_loss()(labels, logits)), -(smooth * log_q).sum(-1).mean(), atol=1e-6)


def test_recipes_train_a_distiller(rng):
    recipe = RECIPES["deit3_small"]
    student = tiny_classifier({"num_layers": 1, **recipe.model_overrides()}, preprocessor=None)
    distiller = DeiTDistiller(student, lambda images: keras.ops.zeros((keras.ops.shape(images)[0], 5)))
    distiller.compile(recipe.build_optimizer(distiller, 2, epochs=1, batch_size=2), recipe.build_loss(), metrics=["accuracy"])
    images, labels = rng.normal(size=(4, 12, 32, 3)).astype("float32"), np.eye(5, dtype="float32")[[0, 1, 2, 3]]
    assert np.isfinite(distiller.fit(images, labels, batch_size=2, verbose=0).history["loss"]).all()
