"""Training a student with labels and a teacher."""

import contextlib
import inspect
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deit.arguments import check_bool, check_choice, check_fraction, check_not_float16
from keras_deit.layers.naming import unique_name
from keras_deit.losses import HardDistillationLoss, SoftDistillationLoss
from keras_deit.models.deit_image_classifier import DeiTImageClassifier
from keras_deit.models.input_checks import CheckedInputs
from keras_deit.models.label_checks import check_labels
from keras_deit.models.raw_images import RawImageInputs

DISTILLATION_TYPES = ("hard", "soft")
_INPUT_NAMES = ("images", "teacher_images", "teacher_logits")


@keras.saving.register_keras_serializable(package="keras_deit")
class DeiTDistiller(RawImageInputs, CheckedInputs, keras.Model):
    """Trains a student with `compile` and `fit`: its class head with labels, its distillation head
    with a teacher.

    `loss = (1 - alpha) * class_loss + alpha * distillation_loss`. `class_loss` is the loss of
    `compile` between labels and class logits, `distillation_loss` the loss between the teacher's
    logits and the distillation logits. Metrics and `evaluate` use the mean of both heads. The
    training log has all three losses.

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
        **kwargs: Any,
    ) -> None:
        _check_student(student)
        check_choice("distillation_type", distillation_type, DISTILLATION_TYPES)
        alpha = check_fraction("alpha", alpha)
        save_teacher = check_bool("save_teacher", save_teacher)
        soft = SoftDistillationLoss(temperature, kl_reduction)
        super().__init__(**{**kwargs, "name": kwargs.get("name") or unique_name("deit_distiller")})
        self.dtype_policy = student.dtype_policy  # enables loss scaling with "mixed_float16"
        self.student = student
        self.distillation_type = distillation_type
        self.alpha = alpha
        self.temperature = soft.temperature
        self.kl_reduction = soft.kl_reduction
        self.save_teacher = save_teacher
        self.set_teacher(teacher)
        self._heads = keras.Model(student.input, {**student.token_logits, "mean": student.output})
        self._distillation_loss = soft if distillation_type == "soft" else HardDistillationLoss()
        self._class_loss_tracker = keras.metrics.Mean(name="class_loss")
        self._distillation_loss_tracker = keras.metrics.Mean(name="distillation_loss")
        self.built = True

    def set_teacher(self, teacher: Any) -> None:
        """Sets the teacher, for example after loading a distiller that was saved without it."""
        self._teacher = _Teacher(teacher, self.student, self.save_teacher)
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
        return self._heads(images, training=training)

    def compile(self, optimizer="rmsprop", loss=None, **kwargs):
        """Like `keras.Model.compile`, with a single `loss` that takes logits.

        It defaults to `SparseCategoricalCrossentropy(from_logits=True)`. A student with weights in
        float16 is refused: use the policy `"mixed_float16"`.
        """
        loss = (
            keras.losses.SparseCategoricalCrossentropy(from_logits=True) if loss is None else loss
        )
        _check_loss(loss)
        if optimizer is not None:
            check_not_float16(self)
        super().compile(optimizer, loss, **kwargs)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config, safe_mode=True))
        self.optimizer.build(self.trainable_variables)

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
        distillation_loss = self._distillation_loss(
            self._teacher_logits(_named(x)), y_pred["distillation"], sample_weight
        )
        batch_size = ops.shape(y_pred["mean"])[0]
        # `tf.distribute` divides every loss by the number of replicas. A loss of 1 measures that
        # factor, so that the log can undo it.
        share = keras.losses.MeanAbsoluteError()(ops.zeros((1, 1)), ops.ones((1, 1)))
        self._class_loss_tracker.update_state(class_loss / share, sample_weight=batch_size)
        self._distillation_loss_tracker.update_state(
            distillation_loss / share, sample_weight=batch_size
        )
        return (1 - self.alpha) * class_loss + self.alpha * distillation_loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return super().compute_metrics(x, y, y_pred["mean"], sample_weight)

    def test_step(self, *args):
        # `evaluate` does not call the teacher, so the two losses are removed from its logs. JAX's
        # step also returns its state.
        result = super().test_step(*args)
        logs, *state = result if isinstance(result, tuple) else (result,)
        of_training = (self._class_loss_tracker.name, self._distillation_loss_tracker.name)
        logs = {name: value for name, value in logs.items() if name not in of_training}
        return (logs, *state) if state else logs

    def _teacher_logits(self, inputs):
        self._check_there_is_a_teacher(inputs)
        if "teacher_logits" in inputs:
            logits = inputs["teacher_logits"]
        else:
            logits = self._teacher(inputs.get("teacher_images", inputs["images"]))
        _check_logits(logits.shape, self.student.num_classes)
        return ops.stop_gradient(_without_softmax(logits))

    def _check_there_is_a_teacher(self, inputs):
        if self._teacher.function is None and "teacher_logits" not in inputs:
            raise ValueError(
                "The distiller has no teacher. Use `distiller.set_teacher(teacher)`, or add its "
                'logits to the data: {"images": ..., "teacher_logits": ...}.'
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
            "name": self.name,
            "trainable": self.trainable,
        }

    @classmethod
    def from_config(cls, config):
        parts = {
            name: keras.saving.deserialize_keras_object(config[name], safe_mode=True)
            for name in ("student", "teacher")
        }
        return cls(**{**config, **parts})


class _Teacher:
    """The teacher as a function of images.

    Not a Keras object, so that Keras neither tracks nor saves it with the distiller.
    """

    def __init__(self, function, student, must_be_saved):
        is_layer = isinstance(function, keras.layers.Layer)
        if function is not None and not callable(function):
            raise ValueError(
                "`teacher` must be a Keras model or a function of images. "
                f"Received: teacher={function!r}"
            )
        if must_be_saved and function is not None and not is_layer:
            raise ValueError(
                "`save_teacher=True` needs a Keras model as teacher. "
                f"Received: teacher={function!r}"
            )
        self.function = function
        self._preprocessor = getattr(function, "preprocessor", None)
        if self._preprocessor is not None and student.preprocessor is None:
            raise ValueError(
                "The teacher has a preprocessor and the student has none. Use a preprocessor for "
                "both, and train with raw images, or `preprocessor=None` for both, and train with "
                "preprocessed images."
            )
        self._arguments = {}
        self.variables = []
        if is_layer and not function.built:
            raise ValueError(
                "`teacher` must be built and trained. To build it, call it on a batch of images."
            )
        with contextlib.suppress(
            AttributeError
        ):  # a subclassed model may not know its output shape
            _check_logits(function.output_shape, student.num_classes)
        if is_layer:
            function.trainable = False
            self._arguments = {"training": False}
            self.variables = function.variables

    def convert(self, images):
        return images if self._preprocessor is None else self._preprocessor(images)

    def __call__(self, images):
        return self.function(images, **self._arguments)


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


def _without_softmax(outputs):
    """Returns logits unchanged, and the logarithm of probabilities, which are valid logits.

    A teacher may be any function, so probabilities are recognised by their values: none is negative
    and each row sums to 1.
    """
    outputs = ops.cast(outputs, "float32")
    sums_to_one = ops.abs(ops.sum(outputs, axis=-1) - 1) < 1e-2  # bfloat16 rounds that much
    are_probabilities = ops.logical_and(ops.all(outputs >= 0), ops.all(sums_to_one))
    return ops.where(
        are_probabilities, ops.log(ops.maximum(outputs, np.finfo("float32").tiny)), outputs
    )


def _check_logits(shape, num_classes):
    if len(shape) != 2 or shape[-1] != num_classes:
        raise ValueError(
            f"The teacher must return logits (batch, {num_classes}), one for each class of the "
            f"student. Received: shape {tuple(shape)}"
        )


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
    if student.activation is not keras.activations.linear:
        raise ValueError(
            "`student` must return logits: use `activation=None`. Received: "
            f"activation={keras.activations.serialize(student.activation)!r}"
        )


def _check_loss(loss):
    if isinstance(loss, (dict, list, tuple)):
        raise ValueError(
            f"`loss` must be a single loss for the class head. Received: loss={loss!r}"
        )
    function = keras.losses.get(loss)
    if isinstance(function, keras.losses.Loss):
        of_probabilities = function.get_config().get("from_logits") is False
    else:  # a name, or a function
        of_probabilities = "from_logits" in inspect.signature(function).parameters
    if of_probabilities:
        raise ValueError(
            "`loss` must take logits, such as "
            "`keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. "
            f"Received: loss={loss!r}"
        )


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
