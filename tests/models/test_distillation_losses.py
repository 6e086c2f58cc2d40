"""The losses of distillation are their formulas."""

import numpy as np
import pytest

from keras_deit import losses
from keras_deit.losses import HardDistillationLoss, SoftDistillationLoss
from tests.helpers import numpy, raises
from tests.models.tiny import cross_entropy, kl_div_of_official_code

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
