"""The vision transformer with a head: images to class logits."""

import functools
import numbers
import os
from collections.abc import Callable, Sequence
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_deit.arguments import (
    check_activation,
    check_bool,
    check_positive_int,
    check_rate,
)
from keras_deit.layers.composite import (
    SublayerArguments,
    model_config,
    own_policy,
    own_trainable,
)
from keras_deit.layers.distillation_head import DistillationHead
from keras_deit.layers.initialization import deit_initializer
from keras_deit.layers.naming import unique_name
from keras_deit.models.compilation import AutomaticCompilation
from keras_deit.models.deit_backbone import DeiTBackbone
from keras_deit.models.from_preset import STORED_APART, load_classifier
from keras_deit.models.lora import LoraAdapters
from keras_deit.models.pooling import check_pooling, pool
from keras_deit.models.preset_model import PresetModel
from keras_deit.models.raw_images import RawImageInputs
from keras_deit.presets.directory import write_preset
from keras_deit.presets.weights import variables_of


@keras.saving.register_keras_serializable(package="keras_deit")
class DeiTImageClassifier(LoraAdapters, RawImageInputs, AutomaticCompilation, PresetModel):
    """A DeiT image classifier: a backbone and a head, as a functional model.

    If the backbone has a distillation token, the class token and the distillation token have one
    head each, and the output is the mean of their logits. Otherwise, or with
    `use_distillation_head=False`, there is one head, which reads what `pooling` selects.

    With a preprocessor, `fit`, `evaluate` and `predict` take raw images: batches of pixel values
    from 0 to 255, as arrays, `tf.data`, `keras.utils.PyDataset`, PyTorch's `DataLoader`, grain's
    datasets or generators. `predict` also takes paths, Pillow images, and lists of images of
    different sizes. Calling the classifier takes preprocessed images:
    `classifier(classifier.preprocessor(images))`.

    `compile()` without arguments selects an optimizer, a loss and metrics for fine-tuning.

    Args:
        backbone: `DeiTBackbone`.
        num_classes: int, 1 or more. For features without a head, use the backbone.
        preprocessor: Keras layer that converts raw images to the backbone's input, such as
            `DeiTImageConverter`. Defaults to `None`.
        pooling: what the head reads. `"token"`: the class token. `"mean"`: the mean of the patch
            tokens. `"token_and_mean"`: both, concatenated, as DINOv2's classifiers do. `"map"`: the
            patch tokens through an `AttentionPooling`, as SigLIP does. Defaults to `"token"`.
        use_distillation_head: bool. Whether the distillation token has its own head. Use `False`
            for a distilled backbone that is fine-tuned on labels alone, as in transformers'
            `DeiTForImageClassification`. Defaults to
            `backbone.use_distillation_token`.
        use_head_norm: bool. Whether a LayerNormalization follows the pooling, usually in place of
            the backbone's `use_final_norm`. Defaults to `False`.
        dropout_rate: float in [0, 1). Dropout before the head. Defaults to 0.0.
        activation: name or callable, applied to the logits. Defaults to `None`, which returns the
            logits.
        labels: sequence of `num_classes` strings, for `decode_predictions`. Defaults to `None`.
        dtype: dtype policy of the head. Defaults to the backbone's.
        name: string. Defaults to a generated name.
        trainable: bool. `False` freezes the head and the backbone. Defaults to `True`.
        quantization_config: quantization settings of the head, as `get_config` returns them after
            `quantize`. Defaults to `None`.

    Input shape:
        (batch, *backbone.image_shape).

    Output shape:
        (batch, num_classes).

    Raises:
        ValueError: if an argument is out of range, the number of labels is wrong, or `pooling` and
            `use_distillation_head` do not fit each other or the backbone.

    Example:

    >>> backbone = DeiTBackbone(
    ...     image_shape=(32, 48, 3),
    ...     patch_size=16,
    ...     num_layers=2,
    ...     num_heads=4,
    ...     hidden_dim=64,
    ...     intermediate_dim=256,
    ... )
    >>> classifier = DeiTImageClassifier(
    ...     backbone, num_classes=10, preprocessor=DeiTImageConverter((32, 48))
    ... )
    >>> photos = np.zeros((2, 427, 640, 3), "uint8")
    >>> classifier.predict(photos, verbose=0).shape
    (2, 10)

    Reference: [Touvron et al., 2021](https://arxiv.org/abs/2012.12877).
    """

    def __init__(
        self,
        backbone: DeiTBackbone,
        num_classes: int,
        preprocessor: keras.layers.Layer | None = None,
        pooling: str = "token",
        use_distillation_head: bool | None = None,
        use_head_norm: bool = False,
        dropout_rate: float = 0.0,
        activation: str | Callable | None = None,
        labels: Sequence[str] | None = None,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool | dict = True,
        quantization_config: dict | None = None,
    ) -> None:
        if not isinstance(backbone, DeiTBackbone):
            raise ValueError(
                f"`backbone` must be a `DeiTBackbone`. Received: backbone={backbone!r}"
            )
        num_classes = _check_num_classes(num_classes)
        if use_distillation_head is None:
            use_distillation_head = backbone.use_distillation_token
        use_distillation_head = check_bool("use_distillation_head", use_distillation_head)
        use_head_norm = check_bool("use_head_norm", use_head_norm)
        check_pooling(pooling, use_distillation_head, backbone)
        dropout_rate = check_rate("dropout_rate", dropout_rate)
        _check_preprocessor(preprocessor)
        labels = _check_labels(labels, num_classes)
        activation = check_activation("activation", activation)
        dtype = backbone.dtype_policy if dtype is None else dtype
        sublayer = SublayerArguments(dtype, trainable, quantization_config)
        dtype = own_policy(dtype)

        features = backbone._class_output if pooling == "token" else backbone.output
        pooled, attention_pooling, head_norm = pool(
            features, pooling, use_distillation_head, use_head_norm, backbone, sublayer
        )
        pooled = keras.layers.Dropout(dropout_rate, dtype=dtype, name="head_dropout")(pooled)
        head, token_logits = _head(pooled, num_classes, use_distillation_head, sublayer("head"))
        outputs = token_logits["class"]
        if use_distillation_head:
            outputs = keras.layers.Average(dtype=dtype, name="mean_logits")(
                list(token_logits.values())
            )
        if activation is not keras.activations.linear:
            outputs = keras.layers.Activation(activation, dtype=dtype, name="activation")(outputs)
        super().__init__(
            inputs=backbone.input,
            outputs=outputs,
            name=name or unique_name("deit_image_classifier"),
            trainable=own_trainable(trainable),
        )
        if trainable is False:
            backbone.trainable = False
        if preprocessor is not None and not preprocessor.built:
            # `quantize` refuses a model with a layer that is not built.
            preprocessor.build((None, *backbone.image_shape))

        self.dtype_policy = dtype
        self.backbone = backbone
        self.head = head
        self.head_norm = head_norm
        self.attention_pooling = attention_pooling
        self.num_classes = num_classes
        self.preprocessor = preprocessor
        self.pooling = pooling
        self.use_distillation_head = use_distillation_head
        self.use_head_norm = use_head_norm
        self.dropout_rate = dropout_rate
        self.activation = activation
        self.labels = labels
        self._features = features
        self._token_logits = token_logits
        sublayer.freeze_variables(self._parts(), self)

    @property
    def token_logits(self):
        """The logits of each head, as symbolic tensors.

        `{"class": (batch, num_classes), "distillation": (batch, num_classes)}`; without a
        distillation head, `"class"` only. To compute them, use
        `keras.Model(classifier.input, classifier.token_logits)`.
        """
        return dict(self._token_logits)

    @property
    def outputs_with_attention_scores(self):
        """The outputs and the attention scores of the same pass, as symbolic tensors.

        `{"outputs": (batch, num_classes), "attention_scores": {"block_0": (batch, num_heads,
        tokens, tokens), ...}}`. To compute them, use
        `keras.Model(classifier.input, classifier.outputs_with_attention_scores)`.
        """
        return {"outputs": self._scored_outputs, "attention_scores": self.backbone.attention_scores}

    @functools.cached_property
    def _scored_outputs(self):
        _, tokens = self.backbone._scored
        if self.pooling == "token":
            tokens = tokens[:, : self.backbone._num_class_tokens]
        return self._head_model(self.backbone._normalized(tokens))

    def decode_predictions(self, logits: Any, top: int = 5) -> list[list[tuple[str, float]]]:
        """Returns the most likely classes of each image with their probabilities.

        Args:
            logits: array (batch, num_classes), the result of `predict`.
            top: int. How many classes to return for each image. Defaults to 5.

        Returns:
            A list of `(label, probability)` for each image, the most likely first. If the
            classifier has an `activation`, its output takes the place of the probability.

        Raises:
            ValueError: if the classifier has no labels or `logits` has another shape.
        """
        if self.labels is None:
            raise ValueError(
                "The classifier has no labels. Use `labels=[...]` in `DeiTImageClassifier` or "
                "`from_preset`."
            )
        logits = ops.convert_to_numpy(logits).astype("float64")
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise ValueError(
                f"`logits` must have shape (batch, {self.num_classes}), as `predict` returns them. "
                f"Received: shape {logits.shape}"
            )
        top = min(check_positive_int("top", top), self.num_classes)
        scores = logits
        if self.activation is keras.activations.linear:
            scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
        order = np.argsort(-scores, axis=-1, kind="stable")[:, :top]
        return [[(self.labels[i], float(row[i])) for i in best] for row, best in zip(scores, order)]

    @classmethod
    def from_preset(
        cls,
        handle: str | os.PathLike,
        load_weights: bool = True,
        revision: str | None = None,
        **overrides: Any,
    ) -> Self:
        """Creates a classifier from a preset, with its preprocessor and labels.

        Args:
            handle: one of

                1. a name from `DeiTImageClassifier.presets`, whose weights are downloaded from the
                   Hugging Face Hub (those of the digits model ship inside the package);
                2. `"hf://owner/repo"`;
                3. the path of a directory.

                Repositories and directories may be in the format of `save_to_preset`, timm or
                transformers, with weights in safetensors. A preset of a backbone needs
                `num_classes=` and gets a new head.
            load_weights: bool. `False` creates the architecture with random weights. Defaults to
                `True`.
            revision: commit, tag or branch of a repository on the hub. Defaults to `None`, the
                newest commit of the main branch.
            **overrides: arguments of `DeiTImageClassifier`, `DeiTBackbone` and
                `DeiTImageConverter` that differ from the preset. `dropout_rate` and `activation`
                are the classifier's. `dtype` applies to backbone and head and defaults to the
                global policy, except that quantized presets keep their own. Another `num_classes`
                gives a head with random weights and no labels, after the preset's pooling; the
                preset's own number keeps its head and labels. Another `image_shape` resamples the
                position embeddings and changes the preprocessor's `image_size`; another
                `patch_size` resamples the patch embedding too. Overriding only `data_format` also
                reorders the axes of `image_shape`. Arguments that the weights were trained with,
                such as `num_heads`, can change only with `load_weights=False`.

        Raises:
            ValueError: if there is no such preset, a file of it is invalid, or the trained weights
                do not allow an override.
            ConnectionError: if the hub cannot be reached and the weights are not in its cache.
            OSError: if a download does not match the hub's checksum.
        """
        if "num_classes" in overrides:
            _check_num_classes(overrides["num_classes"])  # before anything is downloaded
        return load_classifier(cls, DeiTBackbone, handle, load_weights, revision, overrides)

    def save_to_preset(self, directory: str | os.PathLike) -> None:
        """Saves the classifier as a directory of plain files, with its preprocessor and labels.

        `from_preset` loads it, and `huggingface_hub.upload_folder` publishes it. An existing preset
        is replaced once the new one is complete. Its model card, README.md, is kept if you have
        edited it.

        Raises:
            ValueError: if `directory` is a file, contains other files, or contains the current
                directory; or if a weight is NaN or infinite.
            OSError: if the disk is full or cannot be written. An existing preset stays.
        """
        config = self.get_config()
        write_preset(
            directory,
            self.backbone,
            {name: value for name, value in config.items() if name not in STORED_APART},
            self._head_model,
            self.preprocessor,
            self.labels,
            origin=self.backbone._origin,
        )

    @functools.cached_property
    def _head_model(self):
        """The layers after the backbone, as a model."""
        return keras.Model(self._features, self.output)

    def _head_variables(self):
        return variables_of(self._head_model)

    def _weighted_models(self):
        return [self.backbone, self._head_model]

    def _parts(self):
        """The layers with weights, without those of the backbone."""
        parts = (self.attention_pooling, self.head_norm, self.head)
        return [layer for layer in parts if layer is not None]

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        of_head = model_config(self, self._parts())
        if of_head["trainable"] is False:
            # A bare `False` would freeze the backbone too, which has its own entry.
            of_head["trainable"] = {"": False}
        return {
            "name": self.name,
            **of_head,
            "backbone": serialize(self.backbone),
            "num_classes": self.num_classes,
            "preprocessor": None if self.preprocessor is None else serialize(self.preprocessor),
            "pooling": self.pooling,
            "use_distillation_head": self.use_distillation_head,
            "use_head_norm": self.use_head_norm,
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
                    config[key], custom_objects=custom_objects, safe_mode=True
                )
        return cls(**config)


def _head(pooled, num_classes, use_distillation_head, arguments):
    """The head, and the logits of each of its tokens."""
    if use_distillation_head:
        head = DistillationHead(num_classes, **arguments)
        return head, dict(zip(("class", "distillation"), head(pooled)))
    head = keras.layers.Dense(num_classes, kernel_initializer=deit_initializer(), **arguments)
    return head, {"class": head(pooled)}


def _check_num_classes(num_classes):
    is_integer = isinstance(num_classes, numbers.Integral) and not isinstance(num_classes, bool)
    if is_integer and num_classes == 0:
        raise ValueError(
            "`num_classes` must be a positive integer. For features without a head, use "
            "`DeiTBackbone`: `backbone(images)[:, 0]` is the class token. Received: num_classes=0"
        )
    return check_positive_int("num_classes", num_classes)


def _check_preprocessor(preprocessor):
    if preprocessor is not None and not isinstance(preprocessor, keras.layers.Layer):
        raise ValueError(
            "`preprocessor` must be a Keras layer, such as `DeiTImageConverter`, or `None`. "
            f"Received: preprocessor={preprocessor!r}"
        )


def _check_labels(labels, num_classes):
    if labels is None:
        return None
    labels = labels.tolist() if isinstance(labels, np.ndarray) else labels
    if not isinstance(labels, (list, tuple, range)) or not all(
        isinstance(label, (str, numbers.Integral)) for label in labels
    ):
        raise ValueError(
            "`labels` must be a sequence of strings, one for each class. "
            f"Received: labels={labels!r}"
        )
    labels = [str(label) for label in labels]
    if len(labels) != num_classes:
        raise ValueError(
            f"`labels` must have one string for each of the {num_classes} classes. "
            f"Received: {len(labels)} labels"
        )
    return labels
