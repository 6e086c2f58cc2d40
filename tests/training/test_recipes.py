import dataclasses

import keras
import numpy as np
import pytest

from keras_deit.models import DeiTDistiller
from keras_deit.training import RECIPES, Augmentation, MixedLabelBinaryCrossentropy
from tests.helpers import numpy, raises, tiny_classifier

pytestmark = pytest.mark.backend

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
def test_schedule(name, batch_size, highest, last):
    recipe = RECIPES[name]
    schedule = recipe.build_schedule(STEPS, batch_size=batch_size)
    warmup, steps = recipe.warmup_epochs * STEPS, recipe.epochs * STEPS
    middle = warmup + (steps - warmup) // 2
    expected = [1e-6, 1e-6 + (highest - 1e-6) / 2, highest, (highest + last) / 2, last, last]
    np.testing.assert_allclose(
        rates(schedule, [0, warmup // 2, warmup, middle, steps, steps + 7]), expected, rtol=1e-3
    )


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
    decayed = {
        v.path.split("/", 1)[-1]
        for v in model.trainable_variables
        if np.abs(numpy(v) - start[v.path]).max() > 1e-6
    }
    kernels = {v.path.split("/", 1)[-1] for v in model.trainable_variables if v.name == "kernel"}
    assert decayed == kernels
    kernel = next(v for v in model.trainable_variables if v.name == "kernel")
    np.testing.assert_allclose(numpy(kernel), start[kernel.path] * (1 - 1e-3 * 0.05), rtol=1e-6)


def test_optimizers():
    model = tiny_classifier({"num_layers": 1})
    kinds = {
        name: type(recipe.build_optimizer(model, STEPS)).__name__
        for name, recipe in RECIPES.items()
    }
    assert kinds["deit"] == kinds["deit3_base_fine_tune_224"] == "AdamW"
    assert kinds["deit3_huge"] == kinds["deit3_large_in21k"] == "Lamb"
    assert kinds["deit_transfer"] == "SGD"
    assert kinds["new_classes"] == "RecipeAdamW"
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
    np.testing.assert_allclose(
        numpy(RECIPES["deit"].build_loss()(labels, logits)),
        -(smooth * log_q).sum(-1).mean(),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("name", "num_images", "batch_size", "epochs"),
    [
        ("new_classes", 187, 16, 91),  # 11 steps an epoch, and 1000 in all
        ("new_classes", 1036, 64, 63),
        ("new_classes", 100_000, 64, 20),
        ("new_classes", 3, 1, 334),
        ("deit", 187, 16, 300),  # stopped with an error: its batch of 1024 was the default
        ("deit", 1_281_167, 1024, 300),
    ],
)
def test_batch_size_and_epochs_fit_the_number_of_images(name, num_images, batch_size, epochs):
    recipe = RECIPES[name]
    assert (recipe.batch_size_for(num_images), recipe.epochs_for(num_images)) == (
        batch_size,
        epochs,
    )
    with raises("`num_images` must be a positive integer. Received: num_images=0"):
        recipe.batch_size_for(0)


@pytest.mark.parametrize("distilled", [False, True])
def test_a_new_head_learns_faster_than_the_backbone(distilled):
    recipe = dataclasses.replace(RECIPES["new_classes"], weight_decay=0.0)
    classifier = tiny_classifier(
        {"layer_scale_init_value": 0.1, "num_layers": 1, "use_distillation_token": distilled}
    )
    model = DeiTDistiller(classifier, None) if distilled else classifier
    optimizer = recipe.build_optimizer(model, STEPS, ema_momentum=None)
    optimizer.build(model.trainable_variables)
    optimizer.iterations.assign(recipe.warmup_epochs * STEPS)  # where the rate is the highest
    start = [numpy(variable) for variable in model.trainable_variables]
    optimizer.apply(
        [keras.ops.ones(v.shape) for v in model.trainable_variables], model.trainable_variables
    )
    moved = {
        v.path: np.abs(numpy(v) - before).max()
        for v, before in zip(model.trainable_variables, start)
    }
    of_head = {v.path for v in classifier.head.trainable_variables}
    assert len(of_head) == (4 if distilled else 2)
    assert recipe.head_learning_rate_factor == 10
    slow = moved["final_norm/beta"]
    for path, distance in moved.items():
        np.testing.assert_allclose(
            distance, 10 * slow if path in of_head else slow, rtol=0.01, err_msg=path
        )


def test_error_without_a_head():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="other")], name="mine")
    with raises(
        "This recipe has a separate learning rate for the head, but the model has no trainable "
        "layer named `head`. Rename your layer, or use "
        "`dataclasses.replace(recipe, head_learning_rate_factor=1.0)`. Received: a model whose "
        "last trainable variables are mine/other/kernel, mine/other/bias"
    ):
        RECIPES["new_classes"].build_optimizer(model, STEPS)


@pytest.mark.slow
def test_recipes_train_a_distiller(rng):
    recipe = RECIPES["deit3_small"]
    student = tiny_classifier({"num_layers": 1, **recipe.model_overrides()}, preprocessor=None)
    distiller = DeiTDistiller(
        student, lambda images: keras.ops.zeros((keras.ops.shape(images)[0], 5))
    )
    distiller.compile(
        recipe.build_optimizer(distiller, 2, epochs=1, batch_size=2),
        recipe.build_loss(),
        metrics=["accuracy"],
    )
    images, labels = (
        rng.normal(size=(4, 12, 32, 3)).astype("float32"),
        np.eye(5, dtype="float32")[[0, 1, 2, 3]],
    )
    assert np.isfinite(distiller.fit(images, labels, batch_size=2, verbose=0).history["loss"]).all()


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("erasing_rate", ValueError("x"), "a number in [0, 1]"),
        ("rand_augment", "no", "`True` or `False`"),
        ("three_augment", 1, "`True` or `False`"),
        ("crop", ["padded"], "one of 'resized', 'padded'"),
        ("mixup_alpha", -1, "a number, 0 or more"),
        ("color_jitter", float("nan"), "a number, 0 or more"),
        ("repeats", 0, "a positive integer"),
    ],
)
def test_an_augmentation_of_nonsense(name, value, wanted):
    """It was accepted, and failed in `tf.data` in the middle of an epoch, or meant something else."""
    with raises(f"`{name}` must be {wanted}. Received: {name}={value!r}"):
        Augmentation(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("optimizer", "adam", "one of 'adamw', 'lamb', 'sgd'"),
        ("label_smoothing", "0.1", "a number in [0, 1]"),
        ("learning_rate", 0, "a number above 0"),
        ("epochs", 2.5, "a positive integer"),
        ("augmentation", None, "an `Augmentation`"),
        ("min_steps", -1, "a non-negative integer"),
        ("layer_decay", 0.0, "a number in (0, 1]; use 1.0 for no decay"),
        ("layer_decay", 1.5, "a number in (0, 1]; use 1.0 for no decay"),
        ("ema_warmup", 10, "`True` or `False`"),
    ],
)
def test_a_recipe_of_nonsense(name, value, wanted):
    with raises(f"`{name}` must be {wanted}. Received: {name}={value!r}"):
        dataclasses.replace(RECIPES["deit"], **{name: value})


@pytest.mark.parametrize("value", ["0.99", ValueError("x"), 1.5])
def test_a_momentum_of_nonsense(value):
    """Keras' own error names neither the argument nor the value."""
    with raises(
        "`ema_momentum` must be a probability in [0, 1); use 0.0 to switch it off. "
        f"Received: ema_momentum={value!r}"
    ):
        RECIPES["deit"].build_optimizer(keras.Sequential(), 10, ema_momentum=value)
