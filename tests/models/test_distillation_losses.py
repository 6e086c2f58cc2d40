"""The losses of distillation are their formulas."""

from types import MappingProxyType

import keras
import numpy as np
import pytest

from keras_deit import losses
from keras_deit.losses import (
    AttentionDistillationLoss,
    FeatureDistillationLoss,
    HardDistillationLoss,
    RelationDistillationLoss,
    SoftDistillationLoss,
)
from keras_deit.models import DeiTDistiller
from tests.helpers import images, numpy, raises
from tests.models.tiny import (
    JIT,
    cross_entropy,
    kl_div_of_official_code,
    tiny_student,
    tiny_teacher,
)
from tests.models.token_losses import attention_loss, feature_loss, relation_loss, softmax

pytestmark = pytest.mark.backend


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_losses_are_the_formulas(temperature, rng):
    student, teacher = (rng.normal(size=(6, 5)).astype("float32") for _ in range(2))
    hard = HardDistillationLoss()(teacher, student)
    np.testing.assert_allclose(
        numpy(hard), cross_entropy(student, teacher.argmax(-1)).mean(), atol=1e-6
    )
    official = kl_div_of_official_code(student, teacher, temperature)
    np.testing.assert_allclose(
        numpy(SoftDistillationLoss(temperature, "mean")(teacher, student)), official, atol=1e-6
    )
    np.testing.assert_allclose(
        numpy(SoftDistillationLoss(temperature)(teacher, student)), official * 5, rtol=1e-6
    )


def test_losses_stand_large_logits_of_half_precision():
    logits = np.asarray([[6e4, -6e4, 0.0]], "float16")
    for loss in (HardDistillationLoss(), SoftDistillationLoss(1.0)):
        assert np.isfinite(numpy(loss(logits, -logits)))
    same = SoftDistillationLoss(2.0)
    np.testing.assert_allclose(numpy(same(logits, logits)), 0.0, atol=1e-6)
    assert SoftDistillationLoss.from_config(same.get_config()).get_config() == same.get_config()


def test_losses_of_tokens_are_the_formulas(rng):
    teacher, student = rng.normal(size=(3, 5, 12)), rng.normal(size=(3, 5, 8))
    scores = [softmax(3 * rng.normal(size=(3, 2, 5, 5))) for _ in range(2)]
    weights = np.asarray([1.0, 0.0, 0.5], "float32")
    wide = 4 * rng.normal(size=(3, 5, 12))  # errors on both sides of beta
    for loss, expected, pair in (
        (AttentionDistillationLoss(), attention_loss(*scores), scores),
        (RelationDistillationLoss(4), relation_loss(teacher, student, 4), (teacher, student)),
        (FeatureDistillationLoss(), feature_loss(teacher, wide), (teacher, wide)),
        (FeatureDistillationLoss(0.5), feature_loss(teacher, wide, 0.5), (teacher, wide)),
    ):
        pair = [array.astype("float32") for array in pair]
        np.testing.assert_allclose(numpy(loss(*pair)), expected.mean(), rtol=1e-5)
        np.testing.assert_allclose(
            numpy(loss(*pair, weights)), (weights * expected).mean(), rtol=1e-5
        )
        assert type(loss).from_config(loss.get_config()).get_config() == loss.get_config()


def test_attention_that_underflows_has_a_finite_loss():
    one_hot = np.eye(3, dtype="float16")[None, None]
    assert np.isfinite(numpy(AttentionDistillationLoss()(one_hot, one_hot[..., ::-1])))


def test_losses_of_tokens_refuse_shapes_that_do_not_fit():
    def tokens(*shape):
        return np.zeros((2, *shape), "float32")

    with raises(
        "Teacher and student must have the same number of heads and tokens. Otherwise use "
        "`RelationDistillationLoss`, which takes any number of heads. Received: scores of shape "
        "(2, 3, 4, 4) and (2, 2, 4, 4)"
    ):
        AttentionDistillationLoss()(tokens(3, 4, 4), tokens(2, 4, 4))
    with raises(
        "`num_relation_heads` must divide the widths of teacher and student. Received: "
        "num_relation_heads=3, vectors of shape (2, 4, 8)"
    ):
        RelationDistillationLoss(3)(tokens(4, 6), tokens(4, 8))
    with raises(
        "Teacher and student must have the same tokens. Received: shapes (2, 5, 8) and (2, 4, 8)"
    ):
        RelationDistillationLoss()(tokens(5, 8), tokens(4, 8))
    with raises(
        "The student's tokens must be as wide as the teacher's. Project them with "
        "`keras.layers.Dense(6)`. Received: tokens of shape (2, 4, 6) and (2, 4, 8)"
    ):
        FeatureDistillationLoss()(tokens(4, 6), tokens(4, 8))


@pytest.mark.peer
@pytest.mark.parametrize("distillation_type", ["hard", "soft"])
def test_token_distillation_is_that_of_timm(distillation_type, rng):
    torch = pytest.importorskip("torch")
    from timm.task import TokenDistillationTask

    student, teacher = tiny_student(rng), tiny_teacher(rng)
    x, y = images(rng), np.asarray([0, 4, 2, 1])
    logits = keras.Model(student.input, student.token_logits)(x)
    of_student = tuple(torch.tensor(numpy(logits[name])) for name in ("class", "distillation"))
    of_teacher = torch.tensor(numpy(teacher(x, training=False)))

    class Fixed(torch.nn.Module):
        """Returns the same outputs for any image."""

        num_classes, in_chans = 5, 3
        pretrained_cfg = MappingProxyType({"mean": (0.5,) * 3, "std": (0.5,) * 3})

        def __init__(self, outputs):
            super().__init__()
            self.outputs = outputs

        def set_distilled_training(self, enable):
            assert enable

        def forward(self, images):
            return self.outputs

    task = TokenDistillationTask(
        Fixed(of_student),
        Fixed(of_teacher),
        torch.nn.CrossEntropyLoss(),
        distill_type=distillation_type,
        task_loss_weight=0.7,
        temperature=2.0,
        verbose=False,
    )
    expected = task(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(y))
    distiller = DeiTDistiller(student, teacher, distillation_type, alpha=0.3, temperature=2.0)
    distiller.compile(keras.optimizers.SGD(0.0), jit_compile=JIT)
    logs = distiller.fit(x, y, batch_size=4, verbose=0).history
    for name, of_timm in (
        ("loss", "loss"),
        ("class_loss", "task_loss"),
        ("distillation_loss", "distill_loss"),
    ):
        np.testing.assert_allclose(logs[name][0], float(expected[of_timm]), rtol=1e-5)


def test_arguments_of_losses():
    with raises("`label_smoothing` must be a number in [0, 1]. Received: label_smoothing='0.1'"):
        losses.MixedLabelBinaryCrossentropy(label_smoothing="0.1")
    with raises(
        "`from_logits` must be `True`: this loss takes logits. Received: from_logits=False"
    ):
        losses.MixedLabelBinaryCrossentropy(from_logits=False)
    with raises(
        "`reduction` must be one of 'sum_over_batch_size', 'sum', 'mean', 'mean_with_sample_weight', "
        "'none'. Received: reduction={}"
    ):
        losses.SoftDistillationLoss(reduction={})
    loss = losses.MixedLabelBinaryCrossentropy(label_smoothing=0.1)
    assert type(loss).from_config(loss.get_config()).get_config() == loss.get_config()
