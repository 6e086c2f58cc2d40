"""What is trained: the recipe, the classifier, its teacher, and what `compile` takes."""

import dataclasses
import os

import keras
from flag_errors import of_flag
from training.distillation import count_relation_heads, parse_blocks
from training.tuning import choose_trainable

from keras_deit.models import CosubTrainer, DeiTBackbone, DeiTDistiller, DeiTImageClassifier
from keras_deit.presets import find_preset, imagenet_synsets
from keras_deit.training import RECIPES


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long to train."""

    epochs: int
    steps_per_epoch: int
    batch_size: int  # over all devices
    accumulation_steps: int

    @property
    def steps(self):
        return self.epochs * self.steps_per_epoch


@dataclasses.dataclass(frozen=True)
class Model:
    """
    Args:
        fitted: what `fit` is called on: the classifier, or its distiller.
        classifier: what is saved. It has no preprocessor, because the batches are converted.
        converter: its preprocessor.
        image_sizes: the sizes of --image_sizes, or nothing.
        has_average: whether its optimizer keeps a moving average of the weights.
        has_adapters: whether LoRA is enabled.
    """

    fitted: keras.Model
    classifier: DeiTImageClassifier
    converter: keras.layers.Layer
    image_sizes: tuple
    has_average: bool
    has_adapters: bool

    @property
    def num_channels(self):
        return self.classifier.backbone.num_channels


def choose_recipe(options, class_names):
    """The recipe of --recipe, or the one that suits the preset and the classes."""
    if options.recipe:
        name = options.recipe
    elif not options.load_weights:
        name = "deit"
    elif _knows(options.preset, class_names):
        name = "deit3_base_fine_tune_224"
    else:
        name = "new_classes"
    changes = {"ema_warmup": True} if options.ema_warmup else {}
    for field in ("learning_rate", "layer_decay"):
        value = getattr(options, field)
        if value is not None:
            with of_flag(field, value):
                dataclasses.replace(RECIPES[name], **{field: value})
            changes[field] = value
    return dataclasses.replace(RECIPES[name], **changes) if changes else RECIPES[name]


def _knows(handle, class_names):
    """Whether a preset has a head for these classes, in this order."""
    try:
        labels = tuple(find_preset(handle, load_weights=False).labels(len(class_names)) or ())
    except ValueError:  # another number of classes
        return False
    is_imagenet = class_names == imagenet_synsets() and len(labels) == len(class_names)
    return labels == class_names or is_imagenet


def choose_schedule(options, recipe, num_images, num_shares):
    """The flags, or else the recipe's values for so many training images."""
    if options.batch_size is None:
        batch_size = recipe.batch_size_for(num_images)
        batch_size = max(batch_size - batch_size % num_shares, num_shares)
    else:
        batch_size = options.batch_size
    if batch_size % num_shares or batch_size > num_images:
        raise ValueError(
            f"--batch_size must be a multiple of the number of devices, {num_shares}, and at most "
            f"the number of training images, {num_images}. Received: {batch_size}"
        )
    epochs = recipe.epochs_for(num_images) if options.epochs is None else options.epochs
    accumulation_steps = options.gradient_accumulation_steps or 1
    return Schedule(epochs, num_images // batch_size, batch_size, accumulation_steps)


def build_model(options, recipe, schedule, class_names):
    """Builds and compiles the classifier, or what --teacher or --cosub trains it with."""
    sizes = parse_image_sizes(options)
    if len(sizes) > schedule.epochs:
        raise ValueError(
            f"--image_sizes must have at most one size for each of the {schedule.epochs} epochs. "
            f"Received: {','.join(map(str, sizes))}"
        )
    with of_flag("preset", options.preset):
        classifier = _build_classifier(options, recipe, class_names, sizes)
    choose_trainable(options, classifier)
    converter, classifier.preprocessor = classifier.preprocessor, None
    if sizes:
        converter = type(converter).from_config({**converter.get_config(), "image_size": sizes[-1]})
    fitted = classifier
    if options.teacher:
        with of_flag("teacher", options.teacher):
            teacher = _build_teacher(options.teacher, classifier.backbone.image_shape, converter)
            heads = count_relation_heads(classifier.backbone, teacher)
            fitted = DeiTDistiller(
                classifier,
                teacher,
                options.distillation_type,
                options.alpha,
                options.temperature,
                block_distillation=parse_blocks(options.block_distillation, heads),
            )
    elif options.cosub:
        if recipe.drop_path_rate == 0:
            raise ValueError(
                "--cosub needs a recipe with drop path, such as --recipe deit. Received: one with "
                "drop_path_rate=0.0"
            )
        fitted = CosubTrainer(classifier)
    average = ema_momentum(options, recipe, schedule)
    arguments = {"ema_momentum": average}
    if schedule.accumulation_steps > 1:
        arguments["gradient_accumulation_steps"] = schedule.accumulation_steps
    optimizer = recipe.build_optimizer(
        fitted,
        schedule.steps_per_epoch,
        schedule.epochs,
        schedule.batch_size * schedule.accumulation_steps,
        **arguments,
    )
    fitted.compile(
        optimizer,
        recipe.build_loss(),
        weighted_metrics=["accuracy"],
        jit_compile={"auto": "auto", "on": True, "off": False}[options.jit],
    )
    return Model(fitted, classifier, converter, sizes, average is not None, options.tune == "lora")


def parse_image_sizes(options):
    """The sizes of --image_sizes, or nothing."""
    if options.image_sizes is None:
        return ()
    given = ",".join(options.image_sizes)
    if options.image_size:
        raise ValueError(
            "--image_sizes ends at its last size. Use it without --image_size. Received: "
            f"--image_sizes {given} --image_size {options.image_size}"
        )
    sizes = tuple(int(size) if size.isdecimal() else 0 for size in options.image_sizes)
    if len(sizes) < 2 or 0 in sizes or sorted(set(sizes)) != list(sizes):
        raise ValueError(
            "--image_sizes must be two or more sizes in pixels that grow, such as 128,176,224. "
            f"Received: {given}"
        )
    return sizes


def _build_classifier(options, recipe, class_names, image_sizes):
    config = find_preset(options.preset, load_weights=False).backbone_config(DeiTBackbone)
    overrides = {
        "num_classes": len(class_names),
        "labels": list(class_names),
        "dtype": options.dtype_policy,
        "remat": options.remat,
        "activation": None,  # the losses take logits
        **recipe.model_overrides(),
    }
    if config.get("data_format") == "channels_first":
        raise ValueError(
            "The training batches are channels_last. Save the preset again with "
            "`from_preset(handle, data_format='channels_last').save_to_preset(directory)`."
        )
    *_, num_channels = config["image_shape"]
    if num_channels not in (1, 3):
        raise ValueError(
            f"Images are read with 1 or 3 channels. Received: a preset for {num_channels} channels"
        )
    if image_sizes:
        height, width = _check_image_sizes("image_sizes", image_sizes, config["patch_size"])
        overrides["image_shape"] = (None, None, num_channels)
        if config.get("position_scope") != "rotary":
            overrides["position_grid_size"] = (image_sizes[-1] // height, image_sizes[-1] // width)
    elif options.image_size:
        _check_image_sizes("image_size", [options.image_size], config["patch_size"])
        overrides["image_shape"] = (options.image_size, options.image_size, num_channels)
    for name in ("num_merged_tokens", "keep_rate"):
        if getattr(options, name) is not None:
            overrides[name] = getattr(options, name)
    if options.teacher:
        overrides["use_distillation_token"] = True
    classifier = DeiTImageClassifier.from_preset(
        options.preset, load_weights=options.load_weights, **overrides
    )
    if classifier.preprocessor is None:
        raise ValueError(
            "The preset has no preprocessor. Save it again with one: "
            "`from_preset(handle, preprocessor=DeiTImageConverter(...)).save_to_preset(directory)`."
        )
    return classifier


def _check_image_sizes(flag, image_sizes, patch_size):
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    for image_size in image_sizes:
        if image_size % height or image_size % width:
            raise ValueError(
                f"--{flag} must be a multiple of the preset's patch size, {height} x {width} "
                f"pixels. Received: {image_size}"
            )
    return height, width


def _build_teacher(handle, image_shape, converter):
    """A model from the student's normalized images to the teacher's logits."""
    if handle.endswith(".keras"):
        teacher = keras.saving.load_model(os.path.expanduser(handle), safe_mode=True)
    else:
        # The batches are cropped already.
        teacher = DeiTImageClassifier.from_preset(handle, crop_ratio=1.0)
    preprocessor, expected = getattr(teacher, "preprocessor", None), teacher.input_shape[1:]
    if image_shape[-1] != expected[-1] or (image_shape != expected and preprocessor is None):
        raise ValueError(
            f"The teacher takes images of shape {expected}, but the student's have shape "
            f"{image_shape}. Put layers in front of the teacher that convert them."
        )
    to_raw = keras.layers.Rescaling(
        [255 * std for std in converter.std], [255 * mean for mean in converter.mean]
    )
    layers = [keras.Input(image_shape), to_raw, preprocessor, teacher]
    return keras.Sequential([layer for layer in layers if layer is not None], name="teacher")


def ema_momentum(options, recipe, schedule):
    """Momentum of the moving average of the weights, or `None` for no average.

    In a short training, the recipe's momentum would keep the average close to the initial weights.
    So the average spans at most a tenth of the training.
    """
    if not options.ema or recipe.ema_momentum is None:
        return None
    momentum = options.ema_momentum
    if momentum is None:
        shortest = max(0.0, 1 - 10 * schedule.accumulation_steps / schedule.steps)
        momentum = min(recipe.ema_momentum, shortest)
    # Keras averages at every step, also at those that only accumulate gradients.
    return momentum ** (1 / schedule.accumulation_steps)
