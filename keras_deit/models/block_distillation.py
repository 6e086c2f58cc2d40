"""What one block of a student learns from one block of its teacher."""

import numbers
from typing import Any, Self

import keras

from keras_deit.arguments import check_positive_int, check_positive_number
from keras_deit.losses import AttentionDistillationLoss, RelationDistillationLoss
from keras_deit.models.block_tensors import ATTENTION, QUERY_KEY_VALUE, TOKENS


@keras.saving.register_keras_serializable(package="keras_deit")
class BlockDistillation:
    """What `DeiTDistiller` compares between a block of the student and a block of the teacher.

    The loss decides what is compared:

    - `AttentionDistillationLoss`: the attention scores, as in MiniLM;
    - `RelationDistillationLoss`: the relations of queries, of keys and of values, as in MiniLMv2.
      The three losses are added;
    - any other loss, such as `FeatureDistillationLoss`: the tokens after the block. A `Dense` layer
      of the distiller projects the student's tokens to the teacher's width.

    Only tokens that both models have are compared: patches, class and distillation tokens, without
    register tokens. Attention scores among them are divided by their sum.

    Args:
        loss: `keras.losses.Loss`, called with the teacher's values and the student's.
        student_block: int, number of the student's block from 0. Negative numbers count from the
            end. Defaults to -1.
        teacher_block: the same for the teacher. Defaults to -1.
        weight: float above 0. The distiller adds `weight * loss` to its loss. Defaults to 1.0.
        projection_dim: int, width of the teacher's tokens. Only a distiller with `teacher=None`
            needs it. Defaults to `None`, the width of the given teacher.

    Input shape:
        The loss gets attention scores (batch, num_heads, tokens, tokens), or queries, keys, values
        or tokens (batch, tokens, hidden_dim).

    Output shape:
        One number, the loss over a batch.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> student, teacher = (
    ...     DeiTImageClassifier.from_preset(
    ...         "deit_nano_distilled_patch4_32_digits", load_weights=False, num_layers=num_layers
    ...     )
    ...     for num_layers in (1, 2)
    ... )
    >>> relations = keras_deit.losses.RelationDistillationLoss(num_relation_heads=4)
    >>> tokens = keras_deit.losses.FeatureDistillationLoss()
    >>> distiller = DeiTDistiller(
    ...     student,
    ...     teacher,
    ...     block_distillation=[BlockDistillation(relations), BlockDistillation(tokens, 0, 0, 0.5)],
    ... )
    >>> distiller.predict(np.zeros((2, 8, 8, 1), "uint8"), verbose=0)["mean"].shape
    (2, 10)

    References: [Wang et al., 2020](https://arxiv.org/abs/2002.10957) (MiniLM);
        [Wang et al., 2021](https://arxiv.org/abs/2012.15828) (MiniLMv2);
        [Romero et al., 2015](https://arxiv.org/abs/1412.6550) (projected features).
    """

    def __init__(
        self,
        loss: Any,
        student_block: int = -1,
        teacher_block: int = -1,
        weight: float = 1.0,
        projection_dim: int | None = None,
    ) -> None:
        self.loss = _check_loss(loss)
        self.student_block = _check_block("student_block", student_block)
        self.teacher_block = _check_block("teacher_block", teacher_block)
        self.weight = check_positive_number("weight", weight)
        if projection_dim is not None and self.compared != TOKENS:
            raise ValueError(
                "`projection_dim` is for losses between tokens: attention and relations need no "
                f"projection. Received: projection_dim={projection_dim!r}"
            )
        self.projection_dim = (
            None if projection_dim is None else check_positive_int("projection_dim", projection_dim)
        )

    @property
    def compared(self) -> str:
        """What the loss takes: `"attention"`, `"query_key_value"` or `"tokens"`."""
        if isinstance(self.loss, AttentionDistillationLoss):
            return ATTENTION
        return QUERY_KEY_VALUE if isinstance(self.loss, RelationDistillationLoss) else TOKENS

    def get_config(self) -> dict[str, Any]:
        return {
            "loss": keras.saving.serialize_keras_object(self.loss),
            "student_block": self.student_block,
            "teacher_block": self.teacher_block,
            "weight": self.weight,
            "projection_dim": self.projection_dim,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        loss = keras.saving.deserialize_keras_object(config["loss"], safe_mode=True)
        return cls(**{**config, "loss": loss})


def _check_loss(loss):
    if not isinstance(loss, keras.losses.Loss):
        raise ValueError(
            "`loss` must be a `keras.losses.Loss`, such as "
            f"`keras_deit.losses.FeatureDistillationLoss()`. Received: loss={loss!r}"
        )
    if loss.reduction in (None, "none"):
        raise ValueError(
            "`loss` must be one number for a batch: use the default `reduction`. "
            f"Received: a loss with reduction={loss.reduction!r}"
        )
    return loss


def _check_block(name, block):
    if isinstance(block, bool) or not isinstance(block, numbers.Integral):
        raise ValueError(
            f"`{name}` must be the number of a block, from 0, or from -1 backwards. "
            f"Received: {name}={block!r}"
        )
    return int(block)
