"""The published recipes as data, one of our own for new classes, and what is built of them.

Numbers are of facebookresearch/deit at 7e160fe: `main.py` for DeiT, the commands of
`README_revenge.md` for DeiT III, issue 45 for transfer. Where Keras differs from PyTorch it is said
at the builder.
"""

import dataclasses
import math
import re

import keras

from keras_deit.arguments import check_positive_int
from keras_deit.losses import MixedLabelBinaryCrossentropy


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What happens to a training image, in this order.

    Args:
        crop: `"resized"`, a random part of 8 to 100% of the area, resized; or `"padded"`, the image
            resized, padded by 4 pixels and cropped (DeiT III's `--src`).
        rand_augment: whether two random operations at magnitude 9 of 10, with a spread of 0.5.
        three_augment: whether one of grayscale, solarize and blur.
        color_jitter: float, 0 or more. Brightness, contrast and saturation change by a factor of 1
            give or take this.
        erasing_rate: probability that a box of an image becomes noise.
        mixup_alpha: float, 0 or more. Of the Beta distribution that MixUp's share is drawn from; 0
            switches it off.
        cutmix_alpha: as `mixup_alpha`, of CutMix. With both, each batch has one or the other.
        repeats: how often an image is in an epoch's batches, each time augmented anew. The epoch
            has as many images as without: of every `repeats` images one is drawn.
    """

    crop: str = "resized"
    rand_augment: bool = False
    three_augment: bool = False
    color_jitter: float = 0.0
    erasing_rate: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    repeats: int = 1


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Args:
        image_size: pixels, of a side.
        epochs, batch_size: as published, over all devices.
        optimizer: `"adamw"`, `"lamb"` or `"sgd"` (with momentum 0.9).
        learning_rate: the highest, after warm-up.
        learning_rate_batch_size: batch size that `learning_rate` is for; it grows in proportion.
            `None`: it is the same for all.
        warmup_epochs: epochs over which it rises from `warmup_learning_rate`.
        final_learning_rate: where the cosine ends.
        weight_decay: decoupled from the gradient, times the learning rate.
        loss: `"categorical_crossentropy"`, or `"mixed_label_binary_crossentropy"`.
        label_smoothing: share of every label that is spread over all classes.
        drop_path_rate, drop_path_schedule: as of `DeiTBackbone`.
        ema_momentum: of the moving average of the weights, which the official code keeps beside
            those that it evaluates. `None`: there is none.
        augmentation: `Augmentation`.
        head_learning_rate_factor: float above 0. The head's learning rate is this many times that
            of the rest, at every step: a fresh head has all to learn, and a trained backbone much
            to lose. Defaults to 1.0.
        min_steps: steps of a training on few images, which has more epochs than `epochs` for it.
            `None`: it has not.
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

    def batch_size_for(self, num_images):
        """The recipe's batch size; on few images the largest power of two that an epoch has ten of.

        Args:
            num_images: int, of the training set.
        """
        num_images = check_positive_int("num_images", num_images)
        return min(self.batch_size, 2 ** max((num_images // 10).bit_length() - 1, 0))

    def epochs_for(self, num_images):
        """The recipe's epochs; on few images, and if it has `min_steps`, as many as make those with
        batches of `batch_size_for`.

        Args:
            num_images: int, of the training set.
        """
        steps_per_epoch = num_images // self.batch_size_for(num_images)
        return max(self.epochs, math.ceil((self.min_steps or 0) / steps_per_epoch))

    def build_schedule(self, steps_per_epoch, epochs=None, batch_size=None):
        """The learning rate of each step: a line up, then half a cosine down.

        Both default to the recipe's. The warm-up keeps its share of a shorter training. timm's
        cosine begins at the first step, beneath the warm-up; Keras' begins after it.

        Raises:
            ValueError: a number of steps, epochs or images that is not positive.
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

    def build_optimizer(self, model, steps_per_epoch, epochs=None, batch_size=None, **kwargs):
        """The optimizer, with `build_schedule`'s learning rate.

        Where the head has a rate of its own, it is a `keras.optimizers.MultiOptimizer` of two such:
        variables beneath a layer named `head`, and the rest.

        LAMB of Keras decays beside its trust ratio, and not within as the paper's does. Weights of
        one axis (biases, LayerNorm, LayerScale), positions and prefix tokens do not decay. Keras
        does not save which, so that an optimizer that `keras.saving.load_model` brings decays all:
        go on with `TrainingCheckpoint`, or build it again.

        Args:
            model: what is trained: a classifier, a `DeiTDistiller`, any Keras model.
            steps_per_epoch, epochs, batch_size: as of `build_schedule`.
            **kwargs: of the Keras optimizer, such as `clipnorm` or `gradient_accumulation_steps`.
                `ema_momentum=None` switches the moving average off. Each of two optimizers has
                them: a `global_clipnorm` is of its own variables.

        Raises:
            ValueError: as `build_schedule`; or the recipe has a rate for the head, and the model no
                layer `head` that trains.
        """
        ema_momentum = kwargs.pop("ema_momentum", self.ema_momentum)
        if ema_momentum is not None:
            kwargs |= {"use_ema": True, "ema_momentum": ema_momentum}
        if self.optimizer == "sgd":
            kwargs["momentum"] = 0.9
        else:
            kwargs["epsilon"] = 1e-8
        classes = {
            "adamw": keras.optimizers.AdamW,
            "lamb": keras.optimizers.Lamb,
            "sgd": keras.optimizers.SGD,
        }

        def build(recipe):
            schedule = recipe.build_schedule(steps_per_epoch, epochs, batch_size)
            optimizer = classes[self.optimizer](schedule, weight_decay=self.weight_decay, **kwargs)
            optimizer.exclude_from_weight_decay(
                var_list=[v for v in model.trainable_variables if not _decays(v)]
            )
            return optimizer

        if self.head_learning_rate_factor == 1:
            return build(self)
        _check_has_head(model)
        optimizers = keras.optimizers.OptimizerMap(build(self), {_OF_HEAD: build(self._of_head())})
        return keras.optimizers.MultiOptimizer(optimizers)

    def _of_head(self):
        factor = self.head_learning_rate_factor
        names = ("learning_rate", "warmup_learning_rate", "final_learning_rate")
        return dataclasses.replace(self, **{name: factor * getattr(self, name) for name in names})

    def build_loss(self):
        """The loss of logits and one-hot or mixed labels."""
        if self.loss == "mixed_label_binary_crossentropy":
            return MixedLabelBinaryCrossentropy()
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=self.label_smoothing
        )

    def model_overrides(self):
        """What `from_preset` needs beyond a name:
        `from_preset(name, **recipe.model_overrides())`.
        """
        return {
            "drop_path_rate": self.drop_path_rate,
            "drop_path_schedule": self.drop_path_schedule,
        }


# Paths of variables: the head of a classifier, or of a distiller's student
_OF_HEAD = r"(.*/)?head/.*"


def _check_has_head(model):
    paths = [variable.path for variable in model.trainable_variables]
    if not any(re.fullmatch(_OF_HEAD, path) for path in paths):
        raise ValueError(
            "This recipe trains the head at a rate of its own, and the model has no layer `head` "
            "that trains. Call yours `head`, or use "
            "`dataclasses.replace(recipe, head_learning_rate_factor=1.0)`. Received: a model with "
            f"{', '.join(paths[-3:]) or 'none'}"
        )


def _decays(variable):
    return len(variable.shape) > 1 and variable.name not in ("positions", "prefix_tokens")


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


# Not published: of trials on small folders, whose figures are in docs/fine_tune.md.
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
