"""Training a student on labels and on what a teacher says."""

import contextlib
import inspect

import keras
import numpy as np
from keras import ops

from keras_deit.arguments import check_choice, check_fraction
from keras_deit.layers.naming import unique_name
from keras_deit.losses import HardDistillationLoss, SoftDistillationLoss
from keras_deit.models.deit_image_classifier import DeiTImageClassifier
from keras_deit.models.label_checks import check_labels
from keras_deit.models.raw_images import RawImageInputs

DISTILLATION_TYPES = ("hard", "soft")
_INPUT_NAMES = ("images", "teacher_images", "teacher_logits")


@keras.saving.register_keras_serializable(package="keras_deit")
class DeiTDistiller(RawImageInputs, keras.Model):
    """Trains a two-headed student with plain `compile` and `fit`: its class head on the labels, its
    distillation head on a teacher.

    `loss = (1 - alpha) * loss(labels, class logits) + alpha * distillation(teacher logits,
    distillation logits)`, where the first is the `loss` of `compile`. Metrics, `evaluate` and what
    the student predicts are of the mean of the two heads. The log has `class_loss` and
    `distillation_loss` beside their sum.

    Unlike `keras.distillation.Distiller` it knows the distillation token, takes sample and class
    weights, and distils by hard labels. The student trained here is `student`, an ordinary
    classifier; nothing of the distiller is needed after.

    Args:
        student: `DeiTImageClassifier` with a distillation head, and no `activation`.
        teacher: what gives logits (batch, num_classes) for images: a Keras model, or any callable
            of the backend's tensors. Of probabilities, as the models of `keras.applications` give
            by default, the logarithm is taken. Keras models are frozen (`trainable=False`) and run
            in inference mode, once a step. With a student that has a preprocessor, the teacher
            takes raw images too: its own `preprocessor` converts them, at its own size, or the
            callable does. `None` where the data bring `teacher_logits`.
        distillation_type: `"hard"` (`HardDistillationLoss`) or `"soft"` (`SoftDistillationLoss`).
            Defaults to `"hard"`.
        alpha: float in [0, 1]. Share of the teacher in the loss. Defaults to 0.5.
        temperature: float above 0, of `"soft"`. Defaults to 1.0.
        kl_reduction: `"batchmean"` or `"mean"` (the official code's), of `"soft"`. Defaults to
            `"batchmean"`.
        save_teacher: bool. Whether the teacher is saved with the distiller; it must be a Keras
            model then. A distiller that was saved without goes on after `set_teacher`. Defaults to
            `False`.
        **kwargs: `name`, `trainable`.

    Call arguments:
        inputs: images, or `{"images": ...}` with, for training, `"teacher_images"` (the teacher's,
            converted for it) or `"teacher_logits"`, (batch, num_classes), computed before.

    Input shape:
        What `student.fit` takes.

    Output shape:
        `{"class": (batch, num_classes), "distillation": (batch, num_classes), "mean": (batch,
        num_classes)}`, logits.

    Raises:
        ValueError: an argument out of range, a student with one head, a teacher with another number
            of classes, labels that do not fit the loss, NaN in the arrays.

    Example:

    >>> student = DeiTImageClassifier.from_preset("deit_nano_distilled_patch4_32_digits", load_weights=False)
    >>> teacher = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> distiller = DeiTDistiller(student, teacher)
    >>> distiller.compile("adamw", metrics=["accuracy"])
    >>> images, labels = np.zeros((8, 8, 8, 1), "uint8"), np.arange(8)
    >>> history = distiller.fit(images, labels, verbose=0)  # loss, class_loss, distillation_loss, accuracy
    >>> distiller.predict(images, verbose=0)["mean"].shape
    (8, 10)

    Reference: [Touvron et al., 2021](https://arxiv.org/abs/2012.12877), section 4; `losses.py` of
        facebookresearch/deit at 7e160fe.
    """

    _takes_named_images = True

    def __init__(
        self,
        student,
        teacher,
        distillation_type="hard",
        alpha=0.5,
        temperature=1.0,
        kl_reduction="batchmean",
        save_teacher=False,
        **kwargs,
    ):
        _check_student(student)
        check_choice("distillation_type", distillation_type, DISTILLATION_TYPES)
        alpha = check_fraction("alpha", alpha)
        soft = SoftDistillationLoss(temperature, kl_reduction)
        super().__init__(**{**kwargs, "name": kwargs.get("name") or unique_name("deit_distiller")})
        self.dtype_policy = student.dtype_policy  # with "mixed_float16" Keras scales the loss
        self.student = student
        self.distillation_type = distillation_type
        self.alpha = alpha
        self.temperature = soft.temperature
        self.kl_reduction = soft.kl_reduction
        self.save_teacher = bool(save_teacher)
        self.set_teacher(teacher)
        self._heads = keras.Model(student.input, {**student.token_logits, "mean": student.output})
        self._distillation_loss = soft if distillation_type == "soft" else HardDistillationLoss()
        self._class_loss_tracker = keras.metrics.Mean(name="class_loss")
        self._distillation_loss_tracker = keras.metrics.Mean(name="distillation_loss")
        self.built = True

    def set_teacher(self, teacher):
        """Gives the distiller another teacher, or the first one after loading."""
        self._teacher = _Teacher(teacher, self.student, self.save_teacher)
        if self.save_teacher:
            self._saved_teacher = teacher
        if self.compiled:
            self.make_train_function(force=True)  # the step has the teacher in it

    @property
    def preprocessor(self):
        """The student's, from raw images to its own. `None` if it has none."""
        return self.student.preprocessor

    @property
    def variables(self):
        # The teacher's are of the step, so JAX takes them as arguments. Saving goes by attributes,
        # and leaves them out.
        own = super().variables
        known = {id(variable) for variable in own}
        return own + [variable for variable in self._teacher.variables if id(variable) not in known]

    def call(self, inputs, training=None):
        return self._heads(_named(inputs)["images"], training=training)

    def compile(self, optimizer="rmsprop", loss=None, **kwargs):
        """As of `keras.Model`, with one `loss`, of logits. It defaults to
        `SparseCategoricalCrossentropy(from_logits=True)`.
        """
        loss = (
            keras.losses.SparseCategoricalCrossentropy(from_logits=True) if loss is None else loss
        )
        _check_loss(loss)
        super().compile(optimizer, loss, **kwargs)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def fit(self, x=None, y=None, *args, **kwargs):
        # Before anything runs: an error in the middle of a step costs JAX the weights.
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
        # Under `tf.distribute` Keras divides every loss by the number of replicas, one of 1, too.
        # The log should not show that.
        share = keras.losses.MeanAbsoluteError()(ops.zeros((1, 1)), ops.ones((1, 1)))
        self._class_loss_tracker.update_state(class_loss / share, sample_weight=batch_size)
        self._distillation_loss_tracker.update_state(
            distillation_loss / share, sample_weight=batch_size
        )
        return (1 - self.alpha) * class_loss + self.alpha * distillation_loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return super().compute_metrics(x, y, y_pred["mean"], sample_weight)

    def test_step(self, *args):
        # The two losses are of training alone: `evaluate` does not ask the teacher. JAX's step
        # returns its state beside the logs.
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
                "There is no teacher to learn from: give one with "
                "`distiller.set_teacher(teacher)`, or its logits beside the images, "
                '{"images": ..., "teacher_logits": ...}.'
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
            name: keras.saving.deserialize_keras_object(config[name])
            for name in ("student", "teacher")
        }
        return cls(**{**config, **parts})


class _Teacher:
    """What answers for images. No Keras object, so that Keras does not track it and the distiller
    is saved without it.
    """

    def __init__(self, function, student, must_be_saved):
        is_layer = isinstance(function, keras.layers.Layer)
        if function is not None and not callable(function):
            raise ValueError(
                "`teacher` must be a Keras model or a callable of images. Received: "
                f"teacher={function!r}"
            )
        if must_be_saved and function is not None and not is_layer:
            raise ValueError(
                "With `save_teacher=True` the teacher must be a Keras model, which can be saved. "
                f"Received: teacher={function!r}"
            )
        self.function = function
        self._preprocessor = getattr(function, "preprocessor", None)
        if self._preprocessor is not None and student.preprocessor is None:
            raise ValueError(
                "The teacher has a preprocessor and the student has none, so that no images suit "
                "both. Give the student one, and both "
                "take raw images; or give the teacher `preprocessor=None`, and both take the same "
                "converted images."
            )
        self._arguments = {}
        self.variables = []
        if is_layer and not function.built:
            raise ValueError(
                "`teacher` must be built, as a trained one is: call it on a batch of images first."
            )
        with contextlib.suppress(AttributeError):  # a model of a class of its own does not know
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
    """Images alone, or with names, as a dictionary."""
    if not isinstance(inputs, dict):
        return {"images": inputs}
    if "images" not in inputs or not set(inputs) <= set(_INPUT_NAMES):
        raise ValueError(
            f'Inputs are images, or a dictionary of "images" and one of {", ".join(map(repr, _INPUT_NAMES[1:]))}. '
            f"Received: {', '.join(map(repr, inputs))}"
        )
    return inputs


def _without_softmax(outputs):
    """The logarithm of probabilities, whose softmax they are; logits as they come.

    Told by their values, for a teacher may be any callable, or computed before: none is negative,
    and each row sums to one.
    """
    outputs = ops.cast(outputs, "float32")
    sums_to_one = ops.abs(ops.sum(outputs, axis=-1) - 1) < 1e-2  # as rounded as bfloat16 has them
    are_probabilities = ops.logical_and(ops.all(outputs >= 0), ops.all(sums_to_one))
    return ops.where(
        are_probabilities, ops.log(ops.maximum(outputs, np.finfo("float32").tiny)), outputs
    )


def _check_logits(shape, num_classes):
    if len(shape) != 2 or shape[-1] != num_classes:
        raise ValueError(
            f"The teacher must give logits of shape (batch, {num_classes}), as many classes as the "
            "student has. "
            f"Received: shape {tuple(shape)}"
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
            "`DeiTImageClassifier.from_preset(name, use_distillation_token=True)`. Received: a "
            "student with one head"
        )
    if student.activation is not keras.activations.linear:
        raise ValueError(
            "`student` must give logits: use `activation=None`. Received: "
            f"activation={keras.activations.serialize(student.activation)!r}"
        )


def _check_loss(loss):
    if isinstance(loss, (dict, list, tuple)):
        raise ValueError(f"`loss` is one loss, of the class head's logits. Received: loss={loss!r}")
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
