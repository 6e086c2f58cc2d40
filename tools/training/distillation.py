"""What --block_distillation and --cosub mean."""

import math

from flag_errors import of_flag

from keras_deit.losses import (
    AttentionDistillationLoss,
    FeatureDistillationLoss,
    RelationDistillationLoss,
)
from keras_deit.models import BlockDistillation

KINDS = {
    "attention": lambda num_relation_heads: AttentionDistillationLoss(),
    "features": lambda num_relation_heads: FeatureDistillationLoss(),
    "relations": RelationDistillationLoss,
}


def check_distillation(options):
    """Refuses flags that need --teacher or exclude it, and texts that say nothing."""
    if options.cosub and options.teacher:
        raise ValueError(
            "--cosub trains without a teacher. Use one of --cosub and --teacher. Received: "
            f"--teacher {options.teacher}"
        )
    if options.block_distillation and not options.teacher:
        raise ValueError(
            "--block_distillation needs --teacher. Received: --block_distillation "
            f"{','.join(options.block_distillation)}"
        )
    parse_blocks(options.block_distillation, 1)


def count_relation_heads(student, teacher):
    """The student's number of heads, or the next smaller one that divides both widths.

    Args:
        student: `DeiTBackbone`.
        teacher: a model. If it has no backbone, `DeiTDistiller` refuses it.
    """
    backbone = getattr(teacher.layers[-1], "backbone", student)
    return math.gcd(student.num_heads, student.hidden_dim, backbone.hidden_dim)


def parse_blocks(texts, num_relation_heads):
    """The `BlockDistillation` of each text, such as "relations:-1:-1:0.5".

    Args:
        texts: list of `KIND:STUDENT_BLOCK:TEACHER_BLOCK` or `...:WEIGHT`.
        num_relation_heads: int, see `RelationDistillationLoss`.
    """
    return [_parse(text, num_relation_heads) for text in texts]


def _parse(text, num_relation_heads):
    kind, *numbers = text.split(":")
    try:
        student_block, teacher_block = map(int, numbers[:2])
        (weight,) = map(float, numbers[2:] or ("1",))
        loss = KINDS[kind](num_relation_heads)
    except (KeyError, ValueError):
        raise ValueError(
            "--block_distillation must be a list of KIND:STUDENT_BLOCK:TEACHER_BLOCK or "
            f"KIND:STUDENT_BLOCK:TEACHER_BLOCK:WEIGHT, with KIND one of {', '.join(KINDS)}. "
            f"Received: {text}"
        ) from None
    with of_flag("block_distillation", text):
        return BlockDistillation(loss, student_block, teacher_block, weight)
