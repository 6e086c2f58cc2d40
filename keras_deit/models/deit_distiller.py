"""Training a student with labels and a teacher."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deit.arguments import check_bool, check_choice, check_fraction
from keras_deit.layers.naming import unique_name
from keras_deit.losses import HardDistillationLoss, SoftDistillationLoss
from keras_deit.models.block_losses import BlockLosses, check_entries
from keras_deit.models.deit_image_classifier import DeiTImageClassifier
from keras_deit.models.input_checks import CheckedInputs
from keras_deit.models.label_checks import check_labels
from keras_deit.models.logged_losses import LoggedLosses
from keras_deit.models.logits_loss import LogitsLoss, check_returns_logits
from keras_deit.models.raw_images import RawImageInputs
from keras_deit.models.teacher import Teacher, check_logits, without_softmax

DISTILLATION_TYPES = ("hard", "soft")
_INPUT_NAMES = ("images", "teacher_images", "teacher_logits")


@keras.saving.register_keras_serializable(package="keras_deit")
class DeiTDistiller(LogitsLoss, LoggedLosses, RawImageInputs, CheckedInputs, keras.Model):
    """Trains a student with `compile` and `fit`: its class head with labels, its distillation head
    with a teacher.

    `loss = (1 - alpha) * class_loss + alpha * distillation_loss`. `class_loss` is the loss of
    `compile` between labels and class logits, `distillation_loss` the loss between the teacher's
    logits and the distillation logits. `block_distillation` adds its own, weighted losses. Metrics
    and `evaluate` use the mean of both heads. The training log has all losses.

    Unlike `keras.distillation.Distiller`, it supports the distillation token, sample and class
    weights, and hard labels from the teacher. The trained model is `student`, an ordinary
    classifier; the distiller is not needed after training.

    Args:
        student: `DeiTImageClassifier` with a distillation head and without `activation`.
        teacher: Keras model or any callable that takes images and returns logits
            (batch, num_classes). If it returns probabilities, as the models of
            `keras.applications` do by default, their logarithm is used. A Keras model is frozen
            (`trainable=False`) and runs in inference mode, once a step. If the student has a
            preprocessor, the teacher gets the images converted by its own `preprocessor`, or raw
            images if it has none. Use `None` if the data contain `teacher_logits`.
        distillation_type: `"hard"` (`HardDistillationLoss`) or `"soft"` (`SoftDistillationLoss`).
            Defaults to `"hard"`.
        alpha: float in [0, 1]. Weight of the distillation loss. Defaults to 0.5.
        temperature: float above 0, for `"soft"`. Defaults to 1.0.
        kl_reduction: `"batchmean"`, or `"mean"` as in the official code, for `"soft"`. Defaults to
            `"batchmean"`.
        save_teacher: bool. Whether to save the teacher, which must be a Keras model, with the
            distiller. Otherwise, call `set_teacher` after loading to resume training. Defaults to
            `False`.
        block_distillation: list of `BlockDistillation`: what blocks of the student learn from
            blocks of the teacher. The teacher must be a `DeiTImageClassifier`, or a
            `keras.Sequential` that ends with one, with as many rows and columns of patches as the
            student. Defaults to `None`.
        **kwargs: `name`, `trainable`.

    Call arguments:
        inputs: images, or a dict with `"images"` and, for training, either `"teacher_images"`
            (already converted for the teacher) or `"teacher_logits"` (batch, num_classes).

    Input shape:
        Same as for `student.fit`.

    Output shape:
        `{"class": (batch, num_classes), "distillation": (batch, num_classes), "mean": (batch,
        num_classes)}`, all logits.

    Raises:
        ValueError: if an argument is out of range, the student has one head, the teacher has
            another number of classes, the labels do not fit the loss, or images or teacher logits
            are NaN or infinite.

    Example:

    >>> student = DeiTImageClassifier.from_preset(
    ...     "deit_nano_distilled_patch4_32_digits", load_weights=False
    ... )
    >>> teacher = keras.Sequential(
    ...     [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    ... )
    >>> distiller = DeiTDistiller(student, teacher)
    >>> distiller.compile("adamw", metrics=["accuracy"])
    >>> images, labels = np.zeros((8, 8, 8, 1), "uint8"), np.arange(8)
    >>> history = distiller.fit(images, labels, verbose=0)
    >>> distiller.predict(images, verbose=0)["mean"].shape
    (8, 10)

    Reference: [Touvron et al., 2021](https://arxiv.org/abs/2012.12877), section 4; `losses.py` of
        facebookresearch/deit at 7e160fe.
    """

    _takes_named_images = True

    def __init__(
        self,
        student: Any,
        teacher: Any,
        distillation_type: str = "hard",
        alpha: float = 0.5,
        temperature: float = 1.0,
        kl_reduction: str = "batchmean",
        save_teacher: bool = False,
        block_distillation: list | tuple | None = None,
        **kwargs: Any,
    ) -> None:
        _check_student(student)
        check_choice("distillation_type", distillation_type, DISTILLATION_TYPES)
        alpha = check_fraction("alpha", alpha)
        save_teacher = check_bool("save_teacher", save_teacher)
        block_distillation = check_entries(block_distillation)
        soft = SoftDistillationLoss(temperature, kl_reduction)
        super().__init__(**{**kwargs, "name": kwargs.get("name") or unique_name("deit_distiller")})
        self.dtype_policy = student.dtype_policy  # enables loss scaling with "mixed_float16"
        self.student = student
        self.distillation_type = distillation_type
        self.alpha = alpha
        self.temperature = soft.temperature
        self.kl_reduction = soft.kl_reduction
        self.save_teacher = save_teacher
        blocks = BlockLosses(block_distillation, student) if block_distillation else None
        self._block_losses = blocks
        self.set_teacher(teacher)
        if blocks is not None:
            blocks.build_projections()
            self._projections = list(blocks.projections.values())
        self._heads = keras.Model(student.input, {**student.token_logits, "mean": student.output})
        self._distillation_loss = soft if distillation_type == "soft" else HardDistillationLoss()
        names = [] if blocks is None else blocks.names
        self._create_loss_trackers(("class_loss", "distillation_loss", *names))
        self.built = True

    def set_teacher(self, teacher: Any) -> None:
        """Sets the teacher, for example after loading a distiller that was saved without it."""
        checked = Teacher(teacher, self.student, self.save_teacher)
        if self._block_losses is not None and teacher is not None:
            self._block_losses.set_teacher(teacher)
        self._teacher = checked
        if self.save_teacher:
            self._saved_teacher = teacher
        if self.compiled:
            self.make_train_function(force=True)  # the compiled step contains the teacher

    @property
    def preprocessor(self):
        """The student's preprocessor, or `None`."""
        return self.student.preprocessor

    @property
    def variables(self):
        # JAX needs the teacher's variables as arguments of the step. They are not saved, because
        # saving follows attributes.
        own = super().variables
        known = {id(variable) for variable in own}
        return own + [variable for variable in self._teacher.variables if id(variable) not in known]

    def call(self, inputs, training=None):
        images = _named(inputs)["images"]
        self._check_inputs(images)
        if training and self._block_losses is not None:
            return self._block_losses.student(images, training=True)
        return self._heads(images, training=training)

    def fit(self, x=None, y=None, *args, **kwargs):
        # Checked before the first step, because an error inside a step loses the weights on JAX.
        data = getattr(x, "element_spec", x)
        inputs = data[0] if isinstance(data, tuple) else data
        if isinstance(inputs, dict) or hasattr(inputs, "shape"):
            self._check_there_is_a_teacher(_named(inputs))
        _check_finite(x)
        return super().fit(x, y, *args, **kwargs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        check_labels(self.loss, self.student.num_classes, y)
        if not training:
            return super().compute_loss(x, y, y_pred["mean"], sample_weight, training)
        class_loss = super().compute_loss(x, y, y_pred["class"], sample_weight, training)
        logits, blocks = self._ask_teacher(_named(x))
        distillation_loss = self._distillation_loss(logits, y_pred["distillation"], sample_weight)
        losses = {"class_loss": class_loss, "distillation_loss": distillation_loss}
        loss = (1 - self.alpha) * class_loss + self.alpha * distillation_loss
        if blocks is not None:
            of_blocks = self._block_losses(blocks, y_pred["blocks"], sample_weight)
            losses |= of_blocks
            loss += self._block_losses.weighted_sum(of_blocks)
        self._log_losses(losses, ops.shape(y_pred["mean"])[0])
        return loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return super().compute_metrics(x, y, y_pred["mean"], sample_weight)

    def _ask_teacher(self, inputs):
        """The teacher's logits and, for `block_distillation`, what its blocks compute."""
        self._check_there_is_a_teacher(inputs)
        blocks = None
        if "teacher_logits" in inputs:
            logits = inputs["teacher_logits"]
        else:
            images = inputs.get("teacher_images", inputs["images"])
            if self._block_losses is None:
                logits = self._teacher(images)
            else:
                outputs = self._block_losses.teacher(images, training=False)
                logits, blocks = outputs["mean"], outputs["blocks"]
        check_logits(logits.shape, self.student.num_classes)
        return ops.stop_gradient(without_softmax(logits)), blocks

    def _check_there_is_a_teacher(self, inputs):
        if self._block_losses is not None and "teacher_logits" in inputs:
            raise ValueError(
                "`block_distillation` reads the blocks of the teacher, which logits do not have. "
                'Remove "teacher_logits" from the data. Received: inputs with '
                f"{', '.join(map(repr, inputs))}"
            )
        if self._teacher.function is None and "teacher_logits" not in inputs:
            in_data = ""
            if self._block_losses is None:
                in_data = ', or add its logits to the data: {"images": ..., "teacher_logits": ...}'
            raise ValueError(
                f"The distiller has no teacher. Use `distiller.set_teacher(teacher)`{in_data}."
            )

    def _get_classifier(self):
        return self.student

    def _images_of(self, inputs):
        return _named(inputs)["images"]

    def _converter(self, training):
        return self._convert_for_both if training else self._convert_for_student

    def _convert_for_student(self, inputs):
        return self.preprocessor(_named(inputs)["images"])

    def _convert_for_both(self, inputs):
        named = _named(inputs)
        converted = {**named, "images": self.preprocessor(named["images"])}
        if self._teacher.function is not None and not {"teacher_images", "teacher_logits"} & set(
            named
        ):
            converted["teacher_images"] = self._teacher.convert(named["images"])
        return converted

    def get_config(self):
        saves = self.save_teacher and self._teacher.function is not None
        return {
            "student": keras.saving.serialize_keras_object(self.student),
            "teacher": keras.saving.serialize_keras_object(self._teacher.function)
            if saves
            else None,
            "distillation_type": self.distillation_type,
            "alpha": self.alpha,
            "temperature": self.temperature,
            "kl_reduction": self.kl_reduction,
            "save_teacher": self.save_teacher,
            "block_distillation": self._block_losses
            and [keras.saving.serialize_keras_object(e) for e in self._block_losses.entries],
            "name": self.name,
            "trainable": self.trainable,
        }

    @classmethod
    def from_config(cls, config):
        parts = {
            name: keras.saving.deserialize_keras_object(config[name], safe_mode=True)
            for name in ("student", "teacher", "block_distillation")
            if name in config  # files of version 0.2 have no `block_distillation`
        }
        return cls(**{**config, **parts})


def _named(inputs):
    """Inputs as a dict; images alone get the name "images"."""
    if not isinstance(inputs, dict):
        return {"images": inputs}
    if "images" not in inputs or not set(inputs) <= set(_INPUT_NAMES):
        raise ValueError(
            'Inputs must be images, or a dict with "images" and optionally "teacher_images" or '
            f'"teacher_logits". Received: {", ".join(map(repr, inputs))}'
        )
    return inputs


def _check_student(student):
    if not isinstance(student, DeiTImageClassifier):
        raise ValueError(
            f"`student` must be a `DeiTImageClassifier`. Received: student={student!r}"
        )
    if not student.use_distillation_head:
        raise ValueError(
            "`student` must have a distillation head, which learns from the teacher. Use a "
            "backbone with `use_distillation_token=True`, or "
            "`DeiTImageClassifier.from_preset(name, use_distillation_token=True)`. "
            "Received: a student with one head"
        )
    check_returns_logits("student", student)


def _check_finite(x):
    for array in keras.tree.flatten(x):
        if (
            isinstance(array, np.ndarray)
            and array.dtype.kind == "f"
            and not np.isfinite(array).all()
        ):
            raise ValueError(
                "Images and teacher logits must be finite. Received: "
                f"{int((~np.isfinite(array)).sum())} values that are NaN or infinite"
            )
