"""Training recipes: the published ones, and one for new classes.

The numbers come from facebookresearch/deit at 7e160fe: `main.py` for DeiT, `README_revenge.md` for
DeiT III, issue 45 for transfer learning. Differences between Keras and PyTorch are noted at
`build_schedule` and `build_optimizer`.
"""

import dataclasses
import math
from typing import Any

import keras

from keras_deit.arguments import (
    check_bool,
    check_choice,
    check_decay,
    check_fraction,
    check_non_negative_int,
    check_non_negative_number,
    check_not_float16,
    check_positive_int,
    check_positive_number,
    check_rate,
)
from keras_deit.losses import MixedLabelBinaryCrossentropy
from keras_deit.training.learning_rates import check_has_blocks, check_has_head, count_blocks
from keras_deit.training.optimizers import build_optimizer

_OPTIMIZERS = ("adamw", "lamb", "sgd")
_LOSSES = ("categorical_crossentropy", "mixed_label_binary_crossentropy")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The augmentation of training images, in the order of application.

    Args:
        crop: `"resized"`, a random box of 8 to 100% of the area, resized; or `"padded"`, the image
            resized, padded by 4 pixels and cropped at random (DeiT III's `--src`).
        rand_augment: bool, whether to apply two random operations of RandAugment at magnitude 9 of
            10 with a standard deviation of 0.5.
        three_augment: bool, whether to apply one of grayscale, solarize and blur.
        color_jitter: float, 0 or more. Brightness, contrast and saturation change by a random
            factor between 1 - `color_jitter` and 1 + `color_jitter`.
        erasing_rate: probability that a random box of an image is replaced by noise.
        mixup_alpha: float, 0 or more. Parameter of MixUp's Beta distribution; 0 disables MixUp.
        cutmix_alpha: float, 0 or more. As `mixup_alpha`, for CutMix. If both are above 0, each
            batch uses one of the two at random.
        repeats: int, how many augmented copies of an image an epoch contains (repeated
            augmentation). The epoch keeps its length, so it contains fewer different images.
    """

    crop: str = "resized"
    rand_augment: bool = False
    three_augment: bool = False
    color_jitter: float = 0.0
    erasing_rate: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    repeats: int = 1

    def __post_init__(self):
        check_choice("crop", self.crop, ("resized", "padded"))
        checks = {
            check_bool: ("rand_augment", "three_augment"),
            check_non_negative_number: ("color_jitter", "mixup_alpha", "cutmix_alpha"),
            check_fraction: ("erasing_rate",),
            check_positive_int: ("repeats",),
        }
        _normalize(self, checks)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train a model.

    Args:
        image_size: int, height and width of the images in pixels.
        epochs: int, number of epochs.
        batch_size: int, number of images per step over all devices.
        optimizer: `"adamw"`, `"lamb"` or `"sgd"` (with momentum 0.9).
        learning_rate: float, the learning rate after warm-up.
        learning_rate_batch_size: int, the batch size that `learning_rate` is meant for. For other
            batch sizes the learning rate is scaled in proportion. `None` disables the scaling.
        warmup_epochs: int, number of epochs of linear warm-up.
        warmup_learning_rate: float, the learning rate at the start of the warm-up.
        final_learning_rate: float, the learning rate at the end of the cosine decay.
        weight_decay: float, decoupled weight decay.
        loss: `"categorical_crossentropy"` or `"mixed_label_binary_crossentropy"`.
        label_smoothing: float, share of each label that is spread over all classes.
        drop_path_rate, drop_path_schedule: see `DeiTBackbone`.
        ema_momentum: float, momentum of the moving average of the weights, or `None` for no
            average. The official code keeps the average but evaluates the raw weights.
        augmentation: `Augmentation`.
        head_learning_rate_factor: float above 0. The head trains with the learning rate times this
            factor. A new head has to learn quickly, while a trained backbone should change
            slowly. Defaults to 1.0.
        min_steps: int, number of steps to train for at least. Small datasets get more epochs to
            reach it. `None` means that `epochs` is enough. Defaults to `None`.
        layer_decay: float in (0, 1], or `None` for 1. The learning rate of a block is that of the
            next block times this factor. The head has the full learning rate, the embedding the
            lowest: `layer_decay ** (num_layers + 1)` of it. The first blocks then keep more of what
            they have learned. MAE fine-tunes with 0.75
            ([He et al., 2021](https://arxiv.org/abs/2111.06377), table 9). Defaults to `None`.
        ema_warmup: bool. Whether the momentum of the moving average rises with the steps:
            `min(ema_momentum, 1 - (1 + step) ** (-2 / 3))`. An average with a high momentum then
            leaves the initial weights early. Defaults to `False`.
    """

    image_size: int
    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    learning_rate_batch_size: int | None
    warmup_epochs: int
    warmup_learning_rate: float
    final_learning_rate: float
    weight_decay: float
    loss: str
    label_smoothing: float
    drop_path_rate: float
    drop_path_schedule: str
    ema_momentum: float | None
    augmentation: Augmentation
    head_learning_rate_factor: float = 1.0
    min_steps: int | None = None
    layer_decay: float | None = None
    ema_warmup: bool = False

    def __post_init__(self):
        check_choice("optimizer", self.optimizer, _OPTIMIZERS)
        check_choice("loss", self.loss, _LOSSES)
        check_choice("drop_path_schedule", self.drop_path_schedule, ("linear", "constant"))
        checks = {
            check_positive_int: ("image_size", "epochs", "batch_size"),
            check_positive_number: ("learning_rate", "head_learning_rate_factor"),
            check_non_negative_number: (
                "warmup_epochs",
                "warmup_learning_rate",
                "final_learning_rate",
                "weight_decay",
            ),
            check_fraction: ("label_smoothing",),
            check_rate: ("drop_path_rate",),
            check_bool: ("ema_warmup",),
        }
        _normalize(self, checks)
        of_options = {
            check_decay: ("layer_decay",),
            check_positive_int: ("learning_rate_batch_size",),
            check_rate: ("ema_momentum",),
            check_non_negative_int: ("min_steps",),
        }
        _normalize(self, of_options, optional=True)
        if not isinstance(self.augmentation, Augmentation):
            raise ValueError(
                f"`augmentation` must be an `Augmentation`. Received: "
                f"augmentation={self.augmentation!r}"
            )

    def batch_size_for(self, num_images: int) -> int:
        """The recipe's batch size, or less on a small dataset, so that an epoch has ten steps.

        A reduced batch size is a power of two.

        Args:
            num_images: int, number of training images.
        """
        num_images = check_positive_int("num_images", num_images)
        return min(self.batch_size, 2 ** max((num_images // 10).bit_length() - 1, 0))

    def epochs_for(self, num_images: int) -> int:
        """The recipe's number of epochs, or more on a small dataset, to reach `min_steps`.

        The batch size is that of `batch_size_for`.

        Args:
            num_images: int, number of training images.
        """
        steps_per_epoch = num_images // self.batch_size_for(num_images)
        return max(self.epochs, math.ceil((self.min_steps or 0) / steps_per_epoch))

    def build_schedule(
        self, steps_per_epoch: int, epochs: int | None = None, batch_size: int | None = None
    ) -> keras.optimizers.schedules.LearningRateSchedule:
        """Builds the learning-rate schedule: linear warm-up, then cosine decay.

        A shorter training has a shorter warm-up, in proportion. In timm the cosine starts at the
        first step and the warm-up replaces its beginning; in Keras it starts after the warm-up.

        Args:
            steps_per_epoch: int, number of steps per epoch.
            epochs: int, number of epochs. Defaults to the recipe's.
            batch_size: int, number of images per step over all devices. Defaults to the recipe's.

        Returns:
            `keras.optimizers.schedules.CosineDecay`.

        Raises:
            ValueError: if an argument is not a positive integer.
        """
        steps_per_epoch = check_positive_int("steps_per_epoch", steps_per_epoch)
        epochs = check_positive_int("epochs", self.epochs if epochs is None else epochs)
        batch_size = check_positive_int(
            "batch_size", self.batch_size if batch_size is None else batch_size
        )
        scale = batch_size / (self.learning_rate_batch_size or batch_size)
        highest = scale * self.learning_rate
        steps = epochs * steps_per_epoch
        warmup_steps = round(steps * self.warmup_epochs / self.epochs)
        return keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=min(self.warmup_learning_rate, highest),
            warmup_target=highest,
            warmup_steps=warmup_steps,
            decay_steps=max(steps - warmup_steps, 1),
            alpha=min(self.final_learning_rate / highest, 1.0),
        )

    def build_optimizer(
        self,
        model: keras.Model,
        steps_per_epoch: int,
        epochs: int | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> keras.optimizers.Optimizer:
        """Builds the optimizer with the schedule of `build_schedule`.

        Weight decay excludes positions, prefix tokens and weights with one axis: biases, LayerNorm
        and LayerScale. The factors of `layer_decay` and `head_learning_rate_factor` scale the
        learning rate of a variable, and with it the weight decay.

        Without these factors and `ema_warmup`, the optimizer is Keras' own. Keras does not save
        what weight decay excludes, so one from `keras.saving.load_model` decays everything: resume
        with `TrainingCheckpoint` instead.

        Keras' LAMB applies weight decay outside the trust ratio; the paper applies it inside.

        Args:
            model: the Keras model to train, such as a classifier or a `DeiTDistiller`. Freeze
                layers before, not after.
            steps_per_epoch, epochs, batch_size: see `build_schedule`.
            **kwargs: arguments of the Keras optimizer, such as `global_clipnorm` or
                `gradient_accumulation_steps`. `ema_momentum=None` disables the moving average.

        Raises:
            ValueError: if an argument is out of range, the head has its own learning rate and the
                model has no trainable layer `head`, the blocks have their own and none trains, or
                weights to train are in float16 (use the policy `"mixed_float16"`).
        """
        check_not_float16(model)
        for name in ("learning_rate", "weight_decay"):
            if name in kwargs:
                raise ValueError(
                    f"`{name}` belongs to the recipe. Use `dataclasses.replace(recipe, "
                    f"{name}=...)`. Received: {name}={kwargs[name]!r}"
                )
        ema_momentum = kwargs.pop("ema_momentum", self.ema_momentum)
        if ema_momentum is not None:
            ema_momentum = check_rate("ema_momentum", ema_momentum)
            kwargs |= {"use_ema": True, "ema_momentum": ema_momentum}
        if self.optimizer == "sgd":
            kwargs["momentum"] = 0.9
        else:
            kwargs["epsilon"] = 1e-8
        variables = model.trainable_variables
        if self.head_learning_rate_factor != 1:
            check_has_head(variables)
        if self.layer_decay is not None:
            check_has_blocks(variables)
        return build_optimizer(
            self.optimizer,
            variables,
            count_blocks(_without_teacher(model)),
            learning_rate=self.build_schedule(steps_per_epoch, epochs, batch_size),
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            head_learning_rate_factor=self.head_learning_rate_factor,
            ema_warmup=self.ema_warmup and ema_momentum is not None,
            **kwargs,
        )

    def build_loss(self) -> keras.losses.Loss:
        """Builds the loss of logits and one-hot or mixed labels."""
        if self.loss == "mixed_label_binary_crossentropy":
            return MixedLabelBinaryCrossentropy()
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=self.label_smoothing
        )

    def model_overrides(self) -> dict[str, Any]:
        """Overrides of a preset: `from_preset(name, **recipe.model_overrides())`."""
        return {
            "drop_path_rate": self.drop_path_rate,
            "drop_path_schedule": self.drop_path_schedule,
        }


def _without_teacher(model):
    """The variables of the model that is trained, frozen ones too."""
    classifier = getattr(model, "_get_classifier", lambda: model)()
    return classifier.variables


def _normalize(instance, checks, optional=False):
    """Replaces each field, such as a NumPy scalar, by what its check returns."""
    for check, names in checks.items():
        for name in names:
            value = getattr(instance, name)
            if not (optional and value is None):
                object.__setattr__(instance, name, check(name, value))  # the class is frozen


_with = dataclasses.replace
_DEIT = Recipe(
    image_size=224,
    epochs=300,
    batch_size=1024,
    optimizer="adamw",
    learning_rate=5e-4,
    learning_rate_batch_size=512,
    warmup_epochs=5,
    warmup_learning_rate=1e-6,
    final_learning_rate=1e-5,
    weight_decay=0.05,
    loss="categorical_crossentropy",
    label_smoothing=0.1,
    drop_path_rate=0.1,
    drop_path_schedule="linear",
    ema_momentum=0.99996,
    augmentation=Augmentation(
        rand_augment=True, erasing_rate=0.25, mixup_alpha=0.8, cutmix_alpha=1.0, repeats=3
    ),
)
_DEIT3 = Recipe(
    image_size=224,
    epochs=800,
    batch_size=2048,
    optimizer="lamb",
    learning_rate=4e-3,
    learning_rate_batch_size=None,
    warmup_epochs=5,
    warmup_learning_rate=1e-6,
    final_learning_rate=1e-5,
    weight_decay=0.05,
    loss="mixed_label_binary_crossentropy",
    label_smoothing=0.0,
    drop_path_rate=0.05,
    drop_path_schedule="constant",
    ema_momentum=0.99996,
    augmentation=Augmentation(
        three_augment=True, color_jitter=0.3, mixup_alpha=0.8, cutmix_alpha=1.0, repeats=3
    ),
)
_DEIT3_FINE_TUNE = _with(
    _DEIT3,
    epochs=20,
    batch_size=512,
    optimizer="adamw",
    learning_rate=1e-5,
    weight_decay=0.1,
    loss="categorical_crossentropy",
    label_smoothing=0.1,
    augmentation=Augmentation(rand_augment=True, mixup_alpha=0.8, cutmix_alpha=1.0),
)
_DEIT3_21K = _with(
    _DEIT3,
    epochs=240,
    learning_rate=1e-3,
    weight_decay=0.02,
    loss="categorical_crossentropy",
    label_smoothing=0.1,
    augmentation=Augmentation(
        crop="padded", three_augment=True, color_jitter=0.3, cutmix_alpha=1.0
    ),
)
_DEIT3_OF_21K = _with(_DEIT3_21K, epochs=50, learning_rate=3e-4)


# Our own, from trials on small datasets. The results are in docs/fine_tune.md.
_NEW_CLASSES = _with(
    _DEIT,
    epochs=20,
    batch_size=64,
    learning_rate=3e-4,
    learning_rate_batch_size=None,
    warmup_epochs=2,
    augmentation=Augmentation(crop="padded"),
    head_learning_rate_factor=10.0,
    min_steps=1000,
)

RECIPES = {
    "new_classes": _NEW_CLASSES,
    "deit": _DEIT,
    "deit_fine_tune_384": _with(
        _DEIT,
        image_size=384,
        epochs=30,
        batch_size=512,
        learning_rate=5e-6,
        final_learning_rate=5e-6,
        weight_decay=1e-8,
    ),
    "deit_transfer": _with(
        _DEIT,
        epochs=1000,
        batch_size=768,
        optimizer="sgd",
        learning_rate=0.01,
        weight_decay=1e-4,
        drop_path_rate=0.0,
        augmentation=_with(_DEIT.augmentation, erasing_rate=0.0),
    ),
    "deit3_small": _DEIT3,
    "deit3_base": _with(_DEIT3, image_size=192, learning_rate=3e-3, drop_path_rate=0.2),
    "deit3_large": _with(_DEIT3, image_size=192, learning_rate=3e-3, drop_path_rate=0.45),
    "deit3_huge": _with(_DEIT3, image_size=160, learning_rate=3e-3, drop_path_rate=0.6),
    "deit3_base_fine_tune_224": _with(_DEIT3_FINE_TUNE, drop_path_rate=0.2),
    "deit3_large_fine_tune_224": _with(_DEIT3_FINE_TUNE, drop_path_rate=0.45),
    "deit3_huge_fine_tune_224": _with(_DEIT3_FINE_TUNE, drop_path_rate=0.55),
    "deit3_small_fine_tune_384": _with(_DEIT3_FINE_TUNE, image_size=384, drop_path_rate=0.0),
    "deit3_base_fine_tune_384": _with(_DEIT3_FINE_TUNE, image_size=384, drop_path_rate=0.15),
    "deit3_large_fine_tune_384": _with(_DEIT3_FINE_TUNE, image_size=384, drop_path_rate=0.4),
    "deit3_small_in21k": _DEIT3_21K,
    "deit3_base_in21k": _with(_DEIT3_21K, drop_path_rate=0.1),
    "deit3_large_in21k": _with(_DEIT3_21K, drop_path_rate=0.3),
    "deit3_huge_in21k": _with(_DEIT3_21K, image_size=128, epochs=90, drop_path_rate=0.5),
    "deit3_small_fine_tune_of_in21k": _DEIT3_OF_21K,
    "deit3_base_fine_tune_of_in21k": _with(_DEIT3_OF_21K, drop_path_rate=0.15),
    "deit3_large_fine_tune_of_in21k": _with(_DEIT3_OF_21K, drop_path_rate=0.4),
    "deit3_huge_fine_tune_of_in21k": _with(_DEIT3_OF_21K, drop_path_rate=0.45),
}
