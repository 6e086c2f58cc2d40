"""What is compiled: the inference or training step of a subject, as a function of arrays.

Only shapes are needed: models are built under `jax.eval_shape`, so a model of any size takes a
second and no memory.
"""

import dataclasses
import re
from collections.abc import Callable

from benchmarks import results, topologies

MARK = "@compiled "  # the worker's answer starts with it
BATCH = "batch"
MODES = ("inference", "training", "attention")
# Other vision transformers of the same size: what differs from the preset
VARIANTS = {
    "": {},
    "4 registers": {"num_register_tokens": 4},
    "qk-norm": {"use_qk_norm": True},
    # As wide as it must be for as many parameters
    "SwiGLU": {"use_gated_mlp": True, "activation": "silu", "intermediate_dim": 2 / 3},
    "rotary": {"position_scope": "rotary"},
    "mean": {"pooling": "mean", "use_distillation_head": False},
    "map": {"pooling": "map", "use_distillation_head": False},
    "half of the patches": {"patch_dropout_rate": 0.5},
    "positions of 14 x 14": {"position_grid_size": (14, 14)},
}


class NotSupportedError(Exception):
    """The subject does not have this model or mode."""


@dataclasses.dataclass(frozen=True)
class Compilation:
    """One program to compile. The fields are the key of its row."""

    topology: str
    mesh: str  # "batch=32,model=8"; "" for one chip
    subject: str
    preset: str
    image_size: int | None
    num_layers: int | None
    num_merged_tokens: int
    remat: bool
    mode: str
    dtype: str
    batch_size: int  # over all chips
    variant: str = ""


KEY = tuple(field.name for field in dataclasses.fields(Compilation))


def key(row):
    """The values that identify the program of a row."""
    return results.key(row, KEY)


def read(path):
    """The rows of a file, or none if it does not exist. Of two rows of one program, the later."""
    # Rows from before there were variants have none.
    return results.read(path, KEY, defaults={"variant": ""})


@dataclasses.dataclass
class Model:
    """A model as a function, the same for every subject."""

    call: Callable  # (trained, other, images, training) -> (outputs, other)
    trained: list  # shapes of the weights
    other: list
    paths: list  # of the trained weights
    images: tuple  # shape of one image
    config: dict  # arguments of the corresponding `DeiTBackbone`
    what: str = ""  # if it is not the model of the preset
    form: str = ""


@dataclasses.dataclass
class Step:
    """A function and the shapes of its arguments.

    `alike` says for each argument how it is split over a mesh: the path of the weight that it is
    split like, "" if every chip has all of it, and `BATCH` if it is split by images.
    """

    function: Callable
    arguments: tuple
    alike: tuple
    donated: tuple = ()


def models(request):
    """Yields the variants of the model that a subject has; the best one counts."""
    return {"keras_deit": _keras_deit, "keras_hub": _keras_hub, "jax": _jax}[request.subject](
        request
    )


def step(model, request):
    import jax

    dtype = request.dtype.removeprefix("mixed_")
    batch = jax.ShapeDtypeStruct(
        (request.batch_size, *model.images), "float32" if request.mode == "training" else dtype
    )
    if request.mode != "training":

        def infer(trained, other, images):
            return model.call(trained, other, images, False)[0]

        return Step(
            infer,
            (model.trained, model.other, batch),
            (model.paths, [""] * len(model.other), BATCH),
        )

    optimizer, slots, slot_paths = _adamw(model)

    def train(trained, other, slots, images, labels):
        def loss(trained):
            logits, updated = model.call(trained, other, images, True)
            log_probabilities = jax.nn.log_softmax(logits.astype("float32"))
            return -jax.numpy.take_along_axis(
                log_probabilities, labels[:, None], axis=1
            ).mean(), updated

        (value, other), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
        trained, slots = optimizer.stateless_apply(slots, gradients, trained)
        return value, trained, other, slots

    labels = jax.ShapeDtypeStruct((request.batch_size,), "int32")
    arguments = (model.trained, model.other, slots, batch, labels)
    return Step(
        train,
        arguments,
        (model.paths, [""] * len(model.other), slot_paths, BATCH, BATCH),
        donated=(0, 1, 2),
    )


def _adamw(model):
    """Keras' AdamW: (optimizer, shapes of its variables, paths of the weights they belong to)."""
    import keras

    optimizer = keras.optimizers.AdamW(1e-5, weight_decay=0.05)

    def build():
        optimizer.build(
            [
                keras.Variable(
                    initializer="zeros", shape=leaf.shape, dtype=leaf.dtype, name=f"weight_{index}"
                )
                for index, leaf in enumerate(model.trained)
            ]
        )

    _without_values(build)
    owners = [re.search(r"weight_(\d+)_", variable.path) for variable in optimizer.variables]
    paths = [model.paths[int(owner[1])] if owner else "" for owner in owners]
    return optimizer, [_shape(variable) for variable in optimizer.variables], paths


def _without_values(build):
    """Calls a function that builds a Keras object, whose variables get shapes but no values."""
    import jax

    made = []
    jax.eval_shape(lambda: made.append(build()))
    return made[0]


def _shape(variable):
    import jax

    return jax.ShapeDtypeStruct(tuple(variable.shape), variable.dtype)


def _overrides(request):
    from keras_deit.presets.catalog import ARCHITECTURES

    overrides = {"num_merged_tokens": request.num_merged_tokens, "remat": request.remat}
    if request.image_size is not None:
        overrides["image_shape"] = (request.image_size, request.image_size, 3)
    if request.num_layers is not None:
        overrides["num_layers"] = request.num_layers
    variant = dict(VARIANTS[request.variant])
    if "intermediate_dim" in variant:
        config = ARCHITECTURES[request.preset].backbone_config
        variant["intermediate_dim"] = int(config["intermediate_dim"] * variant["intermediate_dim"])
    return {**overrides, **variant}


def _built(request):
    """This package's model of the preset, and its backbone."""
    from keras_deit.models import DeiTImageClassifier

    def build():
        return DeiTImageClassifier.from_preset(
            request.preset,
            load_weights=False,
            preprocessor=None,
            dtype=request.dtype,
            **_overrides(request),
        )

    classifier = _without_values(build)
    return classifier, classifier.backbone.get_config()


def _keras(model, config, what=""):
    def call(trained, other, images, training):
        return model.stateless_call(trained, other, images, training=training)

    return Model(
        call,
        [_shape(variable) for variable in model.trainable_variables],
        [_shape(variable) for variable in model.non_trainable_variables],
        [variable.path for variable in model.trainable_variables],
        tuple(model.input.shape[1:]),
        config,
        what,
    )


def _keras_deit(request):
    import keras

    classifier, config = _built(request)
    if request.mode == "attention":
        classifier = keras.Model(classifier.input, classifier.outputs_with_attention_scores)
    return [_keras(classifier, config)]


def _keras_hub(request):
    import keras_hub

    if request.mode == "attention":
        raise NotSupportedError("KerasHub's DeiT and ViT do not return attention scores.")
    if request.variant:
        raise NotSupportedError("Variants are of this package alone.")
    if request.num_merged_tokens or request.remat:
        raise NotSupportedError(
            "KerasHub's DeiT and ViT have neither token merging nor gradient checkpointing."
        )
    if "model" in request.mesh:
        raise NotSupportedError(
            "KerasHub's DeiT and ViT have no layout map to split their weights over chips."
        )
    classifier, config = _built(request)
    sizes = {
        name: config[name]
        for name in ("image_shape", "patch_size", "num_layers", "num_heads", "hidden_dim")
    }
    if config["data_format"] != "channels_last":
        raise NotSupportedError("KerasHub's models are compared in channels_last only.")

    def build():
        if config["use_distillation_token"]:
            backbone = keras_hub.models.DeiTBackbone(
                **sizes, intermediate_dim=config["intermediate_dim"], dtype=request.dtype
            )
            return keras_hub.models.DeiTImageClassifier(backbone, classifier.num_classes)
        backbone = keras_hub.models.ViTBackbone(
            **sizes, mlp_dim=config["intermediate_dim"], dtype=request.dtype
        )
        return keras_hub.models.ViTImageClassifier(backbone, classifier.num_classes)

    what = "KerasHub's DeiT" if config["use_distillation_token"] else "KerasHub's ViT"
    if config["use_distillation_token"]:
        what += ", one head"
    elif config["layer_scale_init_value"] is not None:
        what += ", without LayerScale"
    return [_keras(_without_values(build), config, what)]


def _jax(request):
    from benchmarks.subjects import plain_jax

    if request.num_merged_tokens or request.variant:
        raise NotSupportedError("The model in plain JAX has no token merging and no variants.")
    classifier, config = _built(request)
    shapes = [_shape(variable) for variable in classifier.trainable_variables]
    paths = [variable.path for variable in classifier.trainable_variables]
    dtype = request.dtype.removeprefix("mixed_")
    attention = "cudnn" if topologies.parse(request.topology).chip.platform == "cuda" else "xla"

    def model(form):
        def call(trained, other, images, training):
            weights = dict(zip(paths, trained))
            scores = request.mode == "attention"
            return plain_jax.classify(
                weights, images, config, form, dtype, training, scores, attention
            ), other

        return Model(
            call, shapes, [], paths, tuple(config["image_shape"]), config, "plain JAX", form
        )

    return [model(form) for form in plain_jax.FORMS]
