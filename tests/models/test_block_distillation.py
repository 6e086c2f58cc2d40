"""What a student learns from blocks of its teacher, against NumPy."""

import keras
import numpy as np
import pytest

from keras_deit.losses import (
    AttentionDistillationLoss,
    FeatureDistillationLoss,
    RelationDistillationLoss,
)
from keras_deit.models import BlockDistillation, DeiTDistiller, DeiTImageClassifier
from tests.conftest import BACKEND
from tests.helpers import images, numpy, raises, randomize, same_arrays, tiny_backbone
from tests.models.tiny import CROSS_ENTROPY, JIT, tiny_teacher
from tests.models.token_losses import attention_loss, feature_loss, relation_loss

pytestmark = pytest.mark.backend
MSE = keras.losses.MeanSquaredError()
LABELS = np.asarray([0, 4, 2, 1])
WEIGHTS = np.asarray([1.0, 0.5, 2.0, 0.0], "float32")


def student_of(rng, **overrides):
    backbone = tiny_backbone(**{"num_layers": 2, "use_distillation_token": True, **overrides})
    return randomize(DeiTImageClassifier(backbone, 5), rng)


def teacher_of(rng, **overrides):
    """Without a distillation token, wider, deeper, and with register tokens."""
    sizes = {"hidden_dim": 12, "num_layers": 3, "num_register_tokens": 2, **overrides}
    return randomize(DeiTImageClassifier(tiny_backbone(**sizes), 5), rng)


def all_losses():
    return [
        BlockDistillation(AttentionDistillationLoss(), weight=0.5),
        BlockDistillation(RelationDistillationLoss(4), 0, -2),
        BlockDistillation(FeatureDistillationLoss(), 0, 1, weight=3.0),
        BlockDistillation(MSE, 1, 0),
    ]


def trained(distiller, x, **options):
    distiller.compile(keras.optimizers.SGD(0.0), jit_compile=JIT)
    return distiller.fit(x, LABELS, batch_size=4, verbose=0, **options).history


def shared(tokens, prefix, axis=1):
    """The class token and the patches."""
    return np.delete(tokens, range(1, prefix), axis)


def outputs(model, kind, block, x):
    tensor = getattr(model.backbone, kind)[f"block_{block}"]
    return numpy(keras.Model(model.input, tensor)(x)).astype("float64")


def query_key_value(model, block, x):
    backbone = model.backbone
    inputs = keras.Model(
        model.input,
        backbone.blocks[block].attention_norm(
            backbone.block_outputs[f"block_{block - 1}"] if block else backbone._states[0][0]
        ),
    )(x)
    return np.split(numpy(backbone.blocks[block].attention.qkv(inputs)).astype("float64"), 3, -1)


def test_losses_are_of_the_tokens_that_both_models_have(rng):
    student, teacher, x = student_of(rng), teacher_of(rng), images(rng)
    distiller = DeiTDistiller(student, teacher, block_distillation=all_losses())
    of_features, of_mse = distiller._projections
    logs = trained(distiller, x, sample_weight=WEIGHTS)

    def scores(model, block, prefix):
        kept = outputs(model, "attention_scores", block, x)
        kept = shared(shared(kept, prefix, 2), prefix, 3)
        return kept / kept.sum(-1, keepdims=True)

    def projected(layer, block):
        kernel, bias = map(numpy, layer.weights)
        return shared(outputs(student, "block_outputs", block, x), 2) @ kernel + bias

    tokens = [shared(outputs(teacher, "block_outputs", block, x), 3) for block in range(2)]
    vectors = zip(query_key_value(teacher, 1, x), query_key_value(student, 0, x))
    expected = {
        "attention_distillation_loss_block_1": attention_loss(
            scores(teacher, 2, 3), scores(student, 1, 2)
        ),
        "relation_distillation_loss_block_0": sum(
            relation_loss(shared(target, 3), shared(own, 2), 4) for target, own in vectors
        ),
        "feature_distillation_loss_block_0": feature_loss(tokens[1], projected(of_features, 0)),
        "mean_squared_error_block_1": ((tokens[0] - projected(of_mse, 1)) ** 2).mean((1, 2)),
    }
    total = 0.5 * (logs["class_loss"][0] + logs["distillation_loss"][0])
    for (name, of_each), weight in zip(expected.items(), (0.5, 1.0, 3.0, 1.0)):
        loss = (WEIGHTS * of_each).mean()
        np.testing.assert_allclose(logs[name][0], loss, rtol=1e-4, err_msg=name)
        total += weight * loss
    np.testing.assert_allclose(logs["loss"][0], total, rtol=1e-4)
    assert sorted(logs) == sorted([*expected, "loss", "class_loss", "distillation_loss"])


def test_outputs_are_those_without_it(rng):
    """The blocks run on a graph of their own."""
    student, teacher = (
        student_of(rng, position_scope="rotary", hidden_dim=16, num_layers=layers)
        for layers in (2, 1)
    )
    x = images(rng)
    blocks = [
        BlockDistillation(loss)
        for loss in (AttentionDistillationLoss(), RelationDistillationLoss(), MSE)
    ]
    distiller = DeiTDistiller(student, teacher, block_distillation=blocks)
    expected, outputs = distiller(x), distiller(x, training=True)
    assert set(outputs) - set(expected) == {"blocks"}
    for name, logits in expected.items():
        np.testing.assert_allclose(numpy(outputs[name]), numpy(logits), atol=1e-5)
    of_teacher = distiller._block_losses.teacher(x, training=False)
    np.testing.assert_allclose(numpy(of_teacher["mean"]), numpy(teacher(x)), atol=1e-5)


def counted(monkeypatch, **models):
    """A list that gets the name of a model for each block that runs."""
    runs = []
    for name, model in models.items():
        for block in model.backbone.blocks:
            call = block.mlp.call

            def count(*args, call=call, name=name, **kwargs):
                runs.append(name)
                return call(*args, **kwargs)

            monkeypatch.setattr(block.mlp, "call", count)
    return runs


def test_each_model_runs_once_a_step(rng, monkeypatch):
    student, teacher, x = student_of(rng), teacher_of(rng), images(rng)
    distiller = DeiTDistiller(student, teacher, block_distillation=all_losses())
    distiller.compile("sgd", run_eagerly=True)
    distiller.fit(x, LABELS, batch_size=4, verbose=0)
    runs = counted(monkeypatch, student=student, teacher=teacher)
    distiller.fit(x, LABELS, batch_size=4, verbose=0)
    assert sorted(runs) == ["student"] * 2 + ["teacher"] * 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The structure of `inputs` doesn't match")  # Keras' own
def test_distiller_of_keras_takes_these_models_and_runs_the_student_twice(rng, monkeypatch):
    """docs/distil.md says so."""
    student, teacher, x = student_of(rng), student_of(rng, num_layers=3), images(rng)
    loss = keras.distillation.FeatureDistillation("mse", "block_2", "block_0")
    distiller = keras.distillation.Distiller(teacher, student, [loss], student_loss_weight=0.5)
    distiller.compile(keras.optimizers.SGD(0.0), CROSS_ENTROPY, run_eagerly=True)
    tokens = [outputs(teacher, "block_outputs", 2, x), outputs(student, "block_outputs", 0, x)]
    logs = distiller.fit(x, LABELS, batch_size=4, verbose=0).history
    np.testing.assert_allclose(
        logs["distillation_loss"][0], ((tokens[0] - tokens[1]) ** 2).mean(), rtol=1e-4
    )
    runs = counted(monkeypatch, student=student)
    distiller.fit(x, LABELS, batch_size=4, verbose=0)
    assert len(runs) == 2 * 2  # two blocks


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_trains_compiled_and_in_mixed_precision(policy, rng):
    keras.config.set_dtype_policy(policy)
    student, teacher, x = student_of(rng, drop_path_rate=0.1), teacher_of(rng), images(rng)
    distiller = DeiTDistiller(student, teacher, block_distillation=all_losses())
    distiller.compile("adamw", jit_compile=BACKEND != "torch")
    before = distiller._projections[0].get_weights()
    logs = distiller.fit(x, LABELS, epochs=8, verbose=0).history
    assert all(np.isfinite(values).all() for values in logs.values())
    assert logs["loss"][-1] < logs["loss"][0]
    assert np.abs(distiller._projections[0].get_weights()[0] - before[0]).max() > 1e-4
    assert list(distiller.evaluate(x, LABELS, verbose=0, return_dict=True)) == ["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("save_teacher", [False, True])
def test_saves_and_loads(save_teacher, rng, tmp_path):
    student, teacher, x = student_of(rng), teacher_of(rng), images(rng)
    distiller = DeiTDistiller(
        student, teacher, save_teacher=save_teacher, block_distillation=all_losses()
    )
    distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), jit_compile=JIT)
    distiller.fit(x, LABELS, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    key = "block_distillation"
    assert loaded.get_config()[key] == distiller.get_config()[key]
    assert [entry["config"]["projection_dim"] for entry in loaded.get_config()[key]] == [
        None,
        None,
        12,
        12,
    ]
    for first, second in zip(distiller._projections, loaded._projections):
        same_arrays(first.get_weights(), second.get_weights())
    same_arrays(loaded.optimizer.variables, distiller.optimizer.variables)
    if not save_teacher:
        with pytest.raises(ValueError, match="The distiller has no teacher"):
            loaded.fit(x, LABELS, verbose=0)
        loaded.set_teacher(teacher)
    for model in (distiller, loaded):
        model.fit(x, LABELS, verbose=0)
    for a, b in zip(loaded.student.get_weights(), student.get_weights()):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_a_teacher_may_end_a_sequence_of_layers(rng):
    """As tools/train.py builds it."""
    student, teacher, x = student_of(rng), teacher_of(rng), images(rng)
    halved = keras.Sequential(
        [keras.Input((12, 32, 3)), keras.layers.Rescaling(0.5), teacher], name="halved"
    )
    logs = [
        trained(DeiTDistiller(student, given, block_distillation=all_losses()[:2]), data)
        for given, data in (
            (halved, {"images": x}),
            (teacher, {"images": x, "teacher_images": 0.5 * x}),
        )
    ]
    for name, values in logs[0].items():
        np.testing.assert_allclose(values, logs[1][name], rtol=1e-4)


def test_what_does_not_fit_is_refused(rng):
    student, teacher = student_of(rng), teacher_of(rng)

    def refused(message, entry, teacher=teacher, student=student):
        with raises(message):
            DeiTDistiller(student, teacher, block_distillation=[entry])

    tokens = BlockDistillation(FeatureDistillationLoss())
    refused(
        "`block_distillation` must be a list of `BlockDistillation`, or `None`. Received: "
        "block_distillation=['mse']",
        "mse",
    )
    refused(
        "`student_block` must be a block of the model, from 0 to 1, or from -2 to -1. Received: "
        "student_block=2",
        BlockDistillation(MSE, 2),
    )
    refused(
        "`teacher_block` must be a block of the model, from 0 to 2, or from -3 to -1. Received: "
        "teacher_block=-4",
        BlockDistillation(MSE, 0, -4),
    )
    refused(
        "`block_distillation` needs as many rows and columns of patches in the teacher as in the "
        "student. Change `image_shape` or `patch_size` of one of them. Received: (3, 4) patches "
        "of the student, (4, 3) of the teacher",
        tokens,
        teacher_of(rng, image_shape=(16, 24, 3)),
    )
    with raises(
        "`loss` must be one number for a batch: use the default `reduction`. Received: a loss with "
        "reduction='none'"
    ):
        BlockDistillation(FeatureDistillationLoss(reduction="none"))
    with raises(
        "`projection_dim` is for losses between tokens: attention and relations need no projection. "
        "Received: projection_dim=8"
    ):
        BlockDistillation(AttentionDistillationLoss(), projection_dim=8)
    refused(
        "`AttentionDistillationLoss` needs as many heads in the teacher as in the student. "
        "`RelationDistillationLoss` does not. Received: 2 heads of the student, 3 of the teacher",
        BlockDistillation(AttentionDistillationLoss()),
        teacher_of(rng, num_heads=3),
    )
    refused(
        "`num_relation_heads` must divide `hidden_dim` of student and teacher, 8 and 12. "
        "Received: num_relation_heads=8",
        BlockDistillation(RelationDistillationLoss(8)),
    )
    refused(
        "`projection_dim` must be the width of the teacher's tokens, 12. Received: "
        "projection_dim=8",
        BlockDistillation(MSE, projection_dim=8),
    )
    refused(
        "A distiller without a teacher needs the width of the teacher's tokens. Use "
        "`BlockDistillation(..., projection_dim=768)`. Received: teacher=None, "
        "projection_dim=None",
        tokens,
        None,
    )
    convolutional = tiny_teacher(rng)
    refused(
        "`block_distillation` needs a `DeiTImageClassifier` as teacher, or a `keras.Sequential` "
        f"that ends with one, to read its blocks. Received: teacher={convolutional!r}",
        tokens,
        convolutional,
    )
    refused(
        "`block_distillation` needs a student that keeps all its tokens: use "
        "`patch_dropout_rate=0`. Received: patch_dropout_rate=0.5",
        tokens,
        student=student_of(rng, patch_dropout_rate=0.5),
    )
    refused(
        "`block_distillation` needs a student that keeps all its tokens: use `keep_rate=1.0`. "
        "Received: keep_rate=0.5",
        tokens,
        student=student_of(rng, keep_rate=0.5),
    )
    refused(
        "`block_distillation` needs a teacher that keeps all its tokens: use "
        "`num_merged_tokens=0`. Received: num_merged_tokens=1",
        tokens,
        teacher_of(rng, num_merged_tokens=1),
    )
    refused(
        "`block_distillation` needs a student with one image size, to compare its patches with "
        "the teacher's. Received: image_shape=(None, None, 3)",
        tokens,
        student=student_of(rng, image_shape=(None, None, 3), position_grid_size=(3, 4)),
    )
    with raises(
        "Each loss of a block needs a name of its own for the log. Use `name=` in the loss. "
        "Received: feature_distillation_loss_block_1 twice"
    ):
        DeiTDistiller(student, teacher, block_distillation=[tokens, tokens])
    distiller = DeiTDistiller(student, teacher, block_distillation=[tokens])
    distiller.compile("sgd")
    logits = np.zeros((4, 5), "float32")
    with raises(
        "`block_distillation` reads the blocks of the teacher, which logits do not have. Remove "
        "\"teacher_logits\" from the data. Received: inputs with 'images', 'teacher_logits'"
    ):
        distiller.fit({"images": images(rng), "teacher_logits": logits}, LABELS, verbose=0)


def test_arguments():
    with raises(
        "`loss` must be a `keras.losses.Loss`, such as "
        "`keras_deit.losses.FeatureDistillationLoss()`. Received: loss='mse'"
    ):
        BlockDistillation("mse")
    with raises(
        "`student_block` must be the number of a block, from 0, or from -1 backwards. Received: "
        "student_block='block_0'"
    ):
        BlockDistillation(MSE, "block_0")
    with raises("`weight` must be a number above 0. Received: weight=0"):
        BlockDistillation(MSE, weight=0)
