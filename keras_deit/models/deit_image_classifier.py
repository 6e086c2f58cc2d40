"""The vision transformer that names what it sees."""

import functools

import keras
import numpy as np
from absl import logging
from keras import ops

from keras_deit.arguments import check_choice, check_positive_int, check_rate
from keras_deit.layers.composite import (
    SublayerArguments,
    own_policy,
    own_trainable,
    sublayers_config,
)
from keras_deit.layers.deit_image_converter import DeiTImageConverter
from keras_deit.layers.distillation_head import DistillationHead
from keras_deit.layers.initialization import deit_initializer, weights_follow
from keras_deit.layers.naming import unique_name
from keras_deit.models.compilation import AutomaticCompilation
from keras_deit.models.deit_backbone import DeiTBackbone
from keras_deit.models.preset_model import (
    PresetModel,
    argument_names,
    check_overrides,
    load_backbone,
    loaded_dtype,
)
from keras_deit.models.raw_images import RawImageInputs
from keras_deit.presets import weights
from keras_deit.presets.adaptation import adapt_head
from keras_deit.presets.directory import write_preset
from keras_deit.presets.handles import find_preset
from keras_deit.presets.layout import has_two_heads

POOLINGS = ("token", "mean")
_GIVEN_APART = ("backbone", "preprocessor", "labels")


@keras.saving.register_keras_serializable(package="keras_deit")
class DeiTImageClassifier(RawImageInputs, AutomaticCompilation, PresetModel):
    """A DeiT image classifier: a backbone and its head, as a functional graph.

    With a distillation token in the backbone, each of the two prefix tokens has a head of its own
    and the output is the mean of their logits. Without, or with `use_distillation_head=False`,
    there is one head, and `pooling` says what it reads.

    `compile()` is enough for `fit`: it has the usual optimizer, loss and metrics.

    With a preprocessor, `fit`, `evaluate` and `predict` take raw images; calling the classifier
    takes converted ones, `classifier(classifier.preprocessor(images))`. Raw images are levels from
    0 to 255, in batches; floats that never exceed 1 get a warning. Images and labels that do not
    fit are refused before anything is compiled. They come as arrays, `tf.data`,
    `keras.utils.PyDataset`, PyTorch's `DataLoader` or a generator; to `predict` also as a path, an
    image of Pillow, or a list of these and of arrays (height, width, channels), each of a size of
    its own.

    Args:
        backbone: `DeiTBackbone`.
        num_classes: int, 1 or more. Without a head, for features, use the backbone.
        preprocessor: Keras layer from raw images to the backbone's input, as `DeiTImageConverter`
            is. Defaults to `None`.
        pooling: `"token"` (the class token) or `"mean"` (the mean of the patch tokens). Defaults to
            `"token"`.
        use_distillation_head: bool. Whether the distillation token has a head of its own. `False`
            is a distilled backbone fine-tuned on labels alone, as transformers'
            `DeiTForImageClassification`. Defaults to whether the backbone has that token.
        dropout_rate: float in [0, 1). Dropout before the head, in training. Defaults to 0.0.
        activation: name or callable, applied to the logits. Defaults to `None`: the output is
            logits.
        labels: sequence of `num_classes` strings, for `decode_predictions`. Defaults to `None`.
        dtype: dtype policy of the head. Defaults to the backbone's.
        name: string. Defaults to a generated one.
        trainable: bool. `False` freezes the backbone, too. Defaults to `True`.
        quantization_config: what `quantize` was told of the head's layers, as `get_config` writes
            it. Defaults to `None`.

    Input shape:
        (batch, *backbone.image_shape).

    Output shape:
        (batch, num_classes).

    Raises:
        ValueError: an argument out of range, `pooling="mean"` with two heads, a distillation head
            without its token, or labels of another number.

    Example:

    >>> backbone = DeiTBackbone(
    ...     image_shape=(32, 48, 3), patch_size=16, num_layers=2, num_heads=4, hidden_dim=64, intermediate_dim=256
    ... )
    >>> classifier = DeiTImageClassifier(backbone, num_classes=10, preprocessor=DeiTImageConverter((32, 48)))
    >>> photos = np.zeros((2, 427, 640, 3), "uint8")
    >>> classifier.predict(photos, verbose=0).shape
    (2, 10)

    Reference: [Touvron et al., 2021](https://arxiv.org/abs/2012.12877).
    """

    def __init__(
        self,
        backbone,
        num_classes,
        preprocessor=None,
        pooling="token",
        use_distillation_head=None,
        dropout_rate=0.0,
        activation=None,
        labels=None,
        dtype=None,
        name=None,
        trainable=True,
        quantization_config=None,
    ):
        if not isinstance(backbone, DeiTBackbone):
            raise ValueError(
                f"`backbone` must be a `DeiTBackbone`. Received: backbone={backbone!r}"
            )
        num_classes = _check_num_classes(num_classes)
        check_choice("pooling", pooling, POOLINGS)
        if use_distillation_head is None:
            use_distillation_head = backbone.use_distillation_token
        if use_distillation_head and not backbone.use_distillation_token:
            raise ValueError(
                "The distillation head reads the distillation token, which the backbone lacks. Use "
                "a backbone with "
                "`use_distillation_token=True`. Received: "
                f"use_distillation_head={use_distillation_head!r}"
            )
        if pooling == "mean" and use_distillation_head:
            raise ValueError(
                'With a distillation head the two heads read their tokens: use `pooling="token"`, or '
                "`use_distillation_head=False`. Received: pooling='mean'"
            )
        if pooling == "mean" and backbone.num_merged_tokens:
            raise ValueError(
                'The mean of merged tokens is not that of the patches: use `pooling="token"`, or a backbone with '
                "`num_merged_tokens=0`. Received: pooling='mean', "
                f"num_merged_tokens={backbone.num_merged_tokens}"
            )
        dropout_rate = check_rate("dropout_rate", dropout_rate)
        if preprocessor is not None and not isinstance(preprocessor, keras.layers.Layer):
            raise ValueError(
                "`preprocessor` must be a Keras layer, such as `DeiTImageConverter`, or `None`. "
                f"Received: preprocessor={preprocessor!r}"
            )
        if isinstance(labels, str):
            raise ValueError(
                "`labels` must be a sequence of strings, one for each class. Received: "
                f"labels={labels!r}"
            )
        if labels is not None:
            labels = [str(label) for label in labels]
            if len(labels) != num_classes:
                raise ValueError(
                    f"`labels` must have one string for each of the {num_classes} classes. "
                    f"Received: {len(labels)} labels"
                )
        dtype = backbone.dtype_policy if dtype is None else dtype
        for_head = SublayerArguments(dtype, trainable, quantization_config).of("head")
        dtype = own_policy(dtype)

        dropout = keras.layers.Dropout(dropout_rate, dtype=dtype, name="head_dropout")
        if use_distillation_head:
            head = DistillationHead(num_classes, **for_head)
            mean_logits = keras.layers.Average(dtype=dtype, name="mean_logits")
        else:
            head = keras.layers.Dense(
                num_classes, kernel_initializer=deit_initializer(), **for_head
            )
        activation = keras.activations.get(activation)
        activation_layer = None
        if activation is not keras.activations.linear:
            activation_layer = keras.layers.Activation(activation, dtype=dtype, name="activation")

        features = backbone.output if pooling == "mean" else backbone._prefix_output
        if use_distillation_head:
            class_logits, distillation_logits = head(dropout(features))
            token_logits = {"class": class_logits, "distillation": distillation_logits}
            logits = mean_logits([class_logits, distillation_logits])
        else:
            pooled = (
                features[:, 0]
                if pooling == "token"
                else ops.mean(features[:, backbone.num_prefix_tokens :], axis=1)
            )
            logits = head(dropout(pooled))
            token_logits = {"class": logits}
        outputs = logits if activation_layer is None else activation_layer(logits)
        name = name or unique_name("deit_image_classifier")
        super().__init__(
            inputs=backbone.input, outputs=outputs, name=name, trainable=own_trainable(trainable)
        )
        if trainable is False:
            backbone.trainable = False

        self.dtype_policy = dtype
        self.backbone = backbone
        self.head = head
        self.num_classes = num_classes
        if preprocessor is not None and not preprocessor.built:
            # `quantize` refuses layers that are not built
            preprocessor.build((None, *backbone.image_shape))
        self.preprocessor = preprocessor
        self.pooling = pooling
        self.use_distillation_head = bool(use_distillation_head)
        self.dropout_rate = dropout_rate
        self.activation = activation
        self.labels = labels
        self._features = features
        self._token_logits = token_logits

    @property
    def token_logits(self):
        """`{"class": (batch, num_classes), "distillation": (batch, num_classes)}`: each head's
        logits, as symbolic tensors.

        `keras.Model(classifier.input, classifier.token_logits)` computes them. Without a
        distillation head there is `"class"` alone.
        """
        return dict(self._token_logits)

    @property
    def outputs_with_attention_scores(self):
        """`{"outputs": (batch, num_classes), "attention_scores": {"block_0": (batch, num_heads,
        tokens, tokens), ...}}`, as symbolic tensors.

        `keras.Model(classifier.input, classifier.outputs_with_attention_scores)` computes both in
        one pass.
        """
        return {"outputs": self._scored_outputs, "attention_scores": self.backbone.attention_scores}

    @functools.cached_property
    def _scored_outputs(self):
        _, tokens = self.backbone._scored
        if self.pooling == "token":
            tokens = tokens[:, : self.backbone.num_prefix_tokens]
        return self._head_model(self.backbone.final_norm(tokens))

    def decode_predictions(self, logits, top=5):
        """The most likely classes of each image.

        Args:
            logits: array (batch, num_classes), what `predict` returns.
            top: int. How many classes to name, at most `num_classes`. Defaults to 5.

        Returns:
            A list for each image of `(label, probability)`, the most likely first. With an
            `activation`, what it made of the logits stands in place of the probability.

        Raises:
            ValueError: no labels are known, or `logits` has another shape.
        """
        if self.labels is None:
            raise ValueError(
                "The labels of the classes are not known. Give `labels=[...]` to "
                "`DeiTImageClassifier` or `from_preset`."
            )
        logits = ops.convert_to_numpy(logits).astype("float64")
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise ValueError(
                f"`logits` must be what `predict` returns, (batch, {self.num_classes}). Received: "
                f"shape {logits.shape}"
            )
        top = min(check_positive_int("top", top), self.num_classes)
        scores = logits
        if self.activation is keras.activations.linear:
            scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
        order = np.argsort(-scores, axis=-1, kind="stable")[:, :top]
        return [[(self.labels[i], float(row[i])) for i in best] for row, best in zip(scores, order)]

    @classmethod
    def from_preset(cls, handle, load_weights=True, **overrides):
        """A classifier by name or from a directory, with the preprocessing that its weights were
        trained for.

        Args:
            handle: a name of `DeiTImageClassifier.presets`, whose original weights come from the
                Hugging Face Hub (the digits model's are in the package); `"hf://owner/repo"`; or a
                directory. Repositories and directories are as `save_to_preset` writes them or as
                timm and transformers do (weights in safetensors; no pickle is opened). A backbone's
                takes `num_classes=` and gets a fresh head.
            load_weights: bool. `False` gives the architecture with random weights. Defaults to
                `True`.
            **overrides: any argument of `DeiTImageClassifier` and `DeiTBackbone` (`dropout_rate` is
                the classifier's; `dtype` is for both), and of `DeiTImageConverter` for the
                preprocessor. With another `num_classes` the head is fresh and has no labels, which
                a log line says; with the preset's own number it is the trained one, with its
                labels. Give `labels=` for classes of your own. `dtype` defaults to the global
                policy, whatever the weights were saved in; a quantized preset keeps its own. With
                another `image_shape` the trained positions are resampled and the preprocessor
                follows; another `data_format` alone turns it. What would make another model of the
                trained weights, as another `num_heads`, needs `load_weights=False`.

        Raises:
            ValueError: no such preset, files that are not as their writer left them, or an override
                that the trained weights cannot take.
            ConnectionError: the hub cannot be reached, and the weights are not in its cache.
            OSError: the download is not what the hub promises.
        """
        own, for_backbone, for_converter = _sort_overrides(cls, overrides)
        if "num_classes" in own:
            _check_num_classes(own["num_classes"])  # before anything is downloaded
        if "preprocessor" in own and for_converter:
            raise ValueError(
                "Overrides of the preset's preprocessor and another `preprocessor=` exclude each "
                "other. "
                f"Received: preprocessor={own['preprocessor']!r} and {for_converter}"
            )
        preset = find_preset(handle)
        source = f"preset {str(handle)!r}"
        saved = preset.task_config(cls, _GIVEN_APART)
        if saved is None and "num_classes" not in own:
            raise ValueError(
                f"The {source} is a backbone without a head. Give `num_classes=` for a fresh one."
            )
        config = {**(saved or {}), **own}
        saved_backbone = preset.backbone_config(DeiTBackbone)
        adds_token = for_backbone.get("use_distillation_token") and not saved_backbone.get(
            "use_distillation_token"
        )
        if adds_token and "use_distillation_head" not in own:
            config["use_distillation_head"] = True  # who asks for the token asks for its head
        backbone = load_backbone(DeiTBackbone, preset, load_weights, for_backbone, source)
        if "preprocessor" not in own:
            config["preprocessor"] = _preprocessor(
                preset.preprocessor_config(), backbone, for_backbone, for_converter
            )
        same_classes = saved is not None and config["num_classes"] == saved["num_classes"]
        if "labels" not in own and same_classes:
            config["labels"] = preset.labels(saved["num_classes"])
        if same_classes and load_weights:
            config["dtype"] = own.get("dtype") or loaded_dtype(saved, saved_backbone)
        else:  # a fresh head is neither quantized nor frozen
            config["dtype"] = own_policy(own.get("dtype") or backbone.dtype_policy)
            config["trainable"] = own.get("trainable", True)
        classifier = cls(backbone, **config)

        if load_weights and same_classes:
            _load_head(classifier, preset, saved, saved_backbone, source)
            if "num_classes" in own and "labels" not in own:
                logging.warning(
                    "The head for %d classes is the trained one, with its labels: the %s has as "
                    "many. Give `labels=` for classes of "
                    "your own.",
                    classifier.num_classes,
                    source,
                )
        elif load_weights:
            logging.warning(
                "The head for %d classes is fresh: the %s has none of that size.",
                classifier.num_classes,
                source,
            )
        return classifier

    def save_to_preset(self, directory):
        """Writes the classifier as a directory of plain files: backbone, head, preprocessing,
        labels, and a model card.

        `from_preset` reads it, and `huggingface_hub.upload_folder` publishes it as it is. A preset
        that is there is replaced, whole or not at all; its README.md, the model card, stays if you
        have edited it.

        Raises:
            ValueError: `directory` is a file, or holds files that are not of a preset.
        """
        config = self.get_config()
        task_config = {key: value for key, value in config.items() if key not in _GIVEN_APART}
        write_preset(
            directory,
            self.backbone,
            task_config,
            self._head_model,
            self.preprocessor,
            self.labels,
            origin=self.backbone._origin,
        )

    @functools.cached_property
    def _head_model(self):
        """What follows the backbone, as a model of its own."""
        return keras.Model(self._features, self.output)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        of_head = sublayers_config(self, [self.head])
        if of_head["trainable"] is False:
            # A bare `False` would freeze the whole backbone, whose own config says what of it is
            # frozen.
            of_head["trainable"] = {"": False}
        return {
            "name": self.name,
            **of_head,
            "backbone": serialize(self.backbone),
            "num_classes": self.num_classes,
            "preprocessor": None if self.preprocessor is None else serialize(self.preprocessor),
            "pooling": self.pooling,
            "use_distillation_head": self.use_distillation_head,
            "dropout_rate": self.dropout_rate,
            "activation": keras.activations.serialize(self.activation),
            "labels": self.labels,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for key in ("backbone", "preprocessor"):
            if isinstance(config.get(key), dict):
                config[key] = keras.saving.deserialize_keras_object(
                    config[key], custom_objects=custom_objects
                )
        return cls(**config)


def _check_num_classes(num_classes):
    if num_classes == 0 and not isinstance(num_classes, bool):
        raise ValueError(
            "A classifier has a head. For features alone use `DeiTBackbone`, whose "
            "`backbone(images)[:, 0]` is the class token, or give the "
            "number of classes. Received: num_classes=0"
        )
    return check_positive_int("num_classes", num_classes)


def _sort_overrides(cls, overrides):
    """Who takes which override: (classifier's, backbone's, converter's)."""
    converter_names = ("crop_ratio", "crop_to_aspect_ratio", "interpolation", "mean", "std")
    classifier_names = [name for name in argument_names(cls) if name != "backbone"]
    backbone_names = [
        name
        for name in argument_names(DeiTBackbone)
        if name not in classifier_names or name == "dtype"
    ]
    check_overrides(overrides, {*classifier_names, *backbone_names, *converter_names})
    return (
        {key: value for key, value in overrides.items() if key in classifier_names},
        {key: value for key, value in overrides.items() if key in backbone_names},
        {key: value for key, value in overrides.items() if key in converter_names},
    )


def _load_head(classifier, preset, saved, saved_backbone, source):
    """The preset's trained head; a second one starts as the first where the preset has one."""
    if classifier.pooling != saved.get("pooling", "token"):
        raise ValueError(
            f"The head of the {source} was trained with another `pooling`. Leave the override out, "
            "or give `load_weights=False`. "
            f"Received: pooling={classifier.pooling!r}"
        )
    had_two = has_two_heads(saved, saved_backbone)
    if had_two and not classifier.use_distillation_head:
        raise ValueError(
            f"The {source} has two heads that answer together; one alone is another model. Leave "
            "out `use_distillation_head=False`, "
            "or take `token_logits` apart."
        )
    with weights_follow():
        state = preset.head_state(
            lambda: type(classifier)(DeiTBackbone.from_config(saved_backbone), **saved)._head_model
        )
    if had_two != classifier.use_distillation_head:
        state = adapt_head(state, source)
    weights.assign(state, classifier._head_model, source)


def _preprocessor(config, backbone, for_backbone, for_converter):
    """The preset's preprocessor, at the backbone's image size."""
    if config is None:
        if for_converter:
            raise ValueError(
                "The preset has no preprocessor to override. Give "
                f"`preprocessor=DeiTImageConverter(...)`. Received: {for_converter}"
            )
        return None
    changes = dict(for_converter)
    if "image_shape" in for_backbone or "data_format" in for_backbone:
        channels_first = backbone.data_format == "channels_first"
        changes["image_size"] = (
            backbone.image_shape[1:] if channels_first else backbone.image_shape[:2]
        )
        changes["data_format"] = backbone.data_format
    if changes and config.get("registered_name") != keras.saving.get_registered_name(
        DeiTImageConverter
    ):
        raise ValueError(
            f"The preset's preprocessor is a {config.get('class_name')}, which cannot follow "
            f"{changes}. Give `preprocessor=` as well."
        )
    return keras.saving.deserialize_keras_object(
        {**config, "config": {**config["config"], **changes}}
    )
