"""The losses between the blocks of a student and of its teacher."""

import keras
from keras import ops

from keras_deit.models.backbone_arguments import KEEPING_ALL
from keras_deit.models.block_distillation import BlockDistillation
from keras_deit.models.block_tensors import (
    ATTENTION,
    QUERY_KEY_VALUE,
    TOKENS,
    common_tokens,
    keep_tokens,
    with_block_tensors,
)
from keras_deit.models.deit_image_classifier import DeiTImageClassifier


class BlockLosses:
    """What a list of `BlockDistillation` means for one student.

    Not a Keras object, so that Keras neither tracks nor saves its models with the distiller, which
    tracks `projections` itself.

    Args:
        entries: list of `BlockDistillation`.
        student: `DeiTImageClassifier`.
    """

    def __init__(self, entries, student):
        backbone = student.backbone
        _check_student(backbone)
        self._backbone = backbone
        blocks = [
            _number("student_block", entry.student_block, backbone.num_layers) for entry in entries
        ]
        self.names = _names(entries, blocks)
        self.student = with_block_tensors(
            student, [(block, entry.compared) for block, entry in zip(blocks, entries)]
        )
        self.teacher = None
        self.entries = entries
        self.projections = {}

    def build_projections(self):
        """Builds the layers that project the student's tokens to the teacher's width."""
        for entry, name in zip(self.entries, self.names):
            if entry.compared == TOKENS:
                self.projections[name] = _projection(entry.projection_dim, self._backbone, name)

    def set_teacher(self, teacher):
        """Builds the teacher's model, or refuses it."""
        classifier, layers_before = _classifier_of(teacher)
        backbone = classifier.backbone
        _check_grids(self._backbone, backbone)
        self.entries = [_for_teacher(entry, self._backbone, backbone) for entry in self.entries]
        wanted = [
            (_number("teacher_block", entry.teacher_block, backbone.num_layers), entry.compared)
            for entry in self.entries
        ]
        model = with_block_tensors(classifier, wanted)
        if layers_before:
            images = keras.Input(teacher.input_shape[1:])
            model = keras.Model(images, model(keras.Sequential(layers_before)(images)))
        self.teacher = model
        self._kept_of_student = common_tokens(self._backbone, backbone)
        self._kept_of_teacher = common_tokens(backbone, self._backbone)

    def __call__(self, taught, learned, sample_weight):
        """Returns the loss of each entry by name, without its weight.

        Args:
            taught, learned: the `"blocks"` of teacher and student.
            sample_weight: (batch,), or `None`.
        """
        if sample_weight is not None:
            # Losses have one value for each image, or one for each token.
            sample_weight = ops.reshape(sample_weight, (-1, 1))
        losses = {}
        for entry, name, of_teacher, of_student in zip(self.entries, self.names, taught, learned):
            total = 0.0
            for target, own in zip(of_teacher, of_student):
                target = _kept(ops.stop_gradient(target), self._kept_of_teacher, entry.compared)
                own = _kept(own, self._kept_of_student, entry.compared)
                if entry.compared == TOKENS:
                    own = self.projections[name](own)
                total = total + entry.loss(target, own, sample_weight)
            losses[name] = total
        return losses

    def weighted_sum(self, losses):
        return sum(entry.weight * losses[name] for entry, name in zip(self.entries, self.names))


def check_entries(entries):
    entries = () if entries is None else entries
    if not isinstance(entries, (list, tuple)) or not all(
        isinstance(entry, BlockDistillation) for entry in entries
    ):
        raise ValueError(
            "`block_distillation` must be a list of `BlockDistillation`, or `None`. Received: "
            f"block_distillation={entries!r}"
        )
    return list(entries)


def _kept(tensor, slices, compared):
    if compared != ATTENTION:
        return keep_tokens(tensor, slices, 1)
    scores = ops.cast(keep_tokens(keep_tokens(tensor, slices, 2), slices, 3), "float32")
    # Half precision may round all of them to 0, if a register token gets the attention.
    return scores / ops.maximum(ops.sum(scores, axis=-1, keepdims=True), 1e-12)


def _projection(dim, backbone, name):
    if dim is None:
        raise ValueError(
            "A distiller without a teacher needs the width of the teacher's tokens. Use "
            "`BlockDistillation(..., projection_dim=768)`. Received: teacher=None, "
            "projection_dim=None"
        )
    projection = keras.layers.Dense(dim, dtype=backbone.dtype_policy, name=f"{name}_projection")
    projection.build((None, None, backbone.hidden_dim))
    return projection


def _number(name, block, num_layers):
    if not -num_layers <= block < num_layers:
        raise ValueError(
            f"`{name}` must be a block of the model, from 0 to {num_layers - 1}, or from "
            f"-{num_layers} to -1. Received: {name}={block}"
        )
    return block % num_layers


def _names(entries, blocks):
    names = [f"{entry.loss.name}_block_{block}" for entry, block in zip(entries, blocks)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                "Each loss of a block needs a name of its own for the log. Use "
                f"`name=` in the loss. Received: {name} twice"
            )
    return names


def _check_keeps_tokens(role, backbone, names):
    for name, value in KEEPING_ALL.items():
        if name in names and getattr(backbone, name) != value:
            raise ValueError(
                f"`block_distillation` needs a {role} that keeps all its tokens: use "
                f"`{name}={value}`. Received: {name}={getattr(backbone, name)!r}"
            )


def _check_student(backbone):
    _check_keeps_tokens("student", backbone, KEEPING_ALL)
    if None in backbone.grid_size:
        raise ValueError(
            "`block_distillation` needs a student with one image size, to compare its patches with "
            f"the teacher's. Received: image_shape={backbone.image_shape}"
        )


def _classifier_of(teacher):
    """The teacher's classifier, and the layers before it in a `keras.Sequential`."""
    layers = teacher.layers if isinstance(teacher, keras.Sequential) else [teacher]
    *before, classifier = layers or [teacher]
    if not isinstance(classifier, DeiTImageClassifier):
        raise ValueError(
            "`block_distillation` needs a `DeiTImageClassifier` as teacher, or a "
            "`keras.Sequential` that ends with one, to read its blocks. "
            f"Received: teacher={teacher!r}"
        )
    return classifier, before


def _check_grids(student, teacher):
    # A teacher drops no patches: it runs in inference mode.
    _check_keeps_tokens("teacher", teacher, set(KEEPING_ALL) - {"patch_dropout_rate"})
    if student.grid_size != teacher.grid_size:
        raise ValueError(
            "`block_distillation` needs as many rows and columns of patches in the teacher as in "
            "the student. Change `image_shape` or `patch_size` of one of them. Received: "
            f"{student.grid_size} patches of the student, {teacher.grid_size} of the teacher"
        )


def _for_teacher(entry, student, teacher):
    """The entry with the width of the teacher, after checking what the two compare."""
    if entry.compared == ATTENTION and student.num_heads != teacher.num_heads:
        raise ValueError(
            "`AttentionDistillationLoss` needs as many heads in the teacher as in the student. "
            "`RelationDistillationLoss` does not. Received: "
            f"{student.num_heads} heads of the student, {teacher.num_heads} of the teacher"
        )
    widths = (student.hidden_dim, teacher.hidden_dim)
    if entry.compared == QUERY_KEY_VALUE and any(
        width % entry.loss.num_relation_heads for width in widths
    ):
        raise ValueError(
            "`num_relation_heads` must divide `hidden_dim` of student and teacher, "
            f"{widths[0]} and {widths[1]}. "
            f"Received: num_relation_heads={entry.loss.num_relation_heads}"
        )
    if entry.compared != TOKENS:
        return entry
    if entry.projection_dim not in (None, teacher.hidden_dim):
        raise ValueError(
            f"`projection_dim` must be the width of the teacher's tokens, {teacher.hidden_dim}. "
            f"Received: projection_dim={entry.projection_dim}"
        )
    return BlockDistillation(**{**vars(entry), "projection_dim": teacher.hidden_dim})
