"""The vision transformer without a head: images to tokens."""

import functools
import os
from collections.abc import Callable
from typing import Any, Self

import keras

from keras_deit.arguments import (
    check_bool,
    check_pair,
)
from keras_deit.data_formats import (
    check_data_format,
    grid_size_of,
    join_image_shape,
    split_image_shape,
)
from keras_deit.layers.composite import (
    SublayerArguments,
    model_config,
    own_policy,
    own_trainable,
)
from keras_deit.layers.mlp import activation_config
from keras_deit.layers.naming import unique_name
from keras_deit.layers.scored_attention import ScoredAttention
from keras_deit.models.backbone_arguments import block_kinds, drop_path_rates, prefix_tokens
from keras_deit.models.embedding import Embedding
from keras_deit.models.feature_maps import FeatureMaps
from keras_deit.models.from_preset import load_backbone
from keras_deit.models.image_sizes import check_image_shape, grids
from keras_deit.models.lora import LoraAdapters
from keras_deit.models.preset_model import PresetModel
from keras_deit.presets.directory import write_preset


@keras.saving.register_keras_serializable(package="keras_deit")
class DeiTBackbone(LoraAdapters, FeatureMaps, PresetModel):
    """A DeiT vision transformer without a head, as a functional model.

    The model consists of a `PatchEmbedding`, a `TokenPositionEmbedding`, `num_layers`
    `TransformerBlock`s and a `LayerNormalization`. The defaults are DeiT's. DeiT III uses
    `position_scope="patches"`, `layer_scale_init_value=1e-4` and `drop_path_schedule="constant"`.
    Other vision transformers combine the arguments from `use_class_token` on; docs/load.md has a
    table.

    Args:
        image_shape: (height, width, channels) in pixels, or (channels, height, width) with
            `data_format="channels_first"`. Images need not be square. `None` for height and width
            means images of any size.
        patch_size: int or (height, width), in pixels. Must divide the image, unless
            `pad_images=True`.
        num_layers: int. Number of transformer blocks.
        num_heads: int. Number of attention heads in each block. Must divide `hidden_dim`.
        hidden_dim: int. Size D of a token.
        intermediate_dim: int. Size of the MLP's hidden layer.
        use_distillation_token: bool. Whether to add a distillation token after the class token.
            Defaults to `False`.
        position_scope: `"all"` adds learned positions to prefix tokens and patches (DeiT),
            `"patches"` to patches only (DeiT III). `"rotary"` has no learned positions: each
            attention rotates its queries and keys (`RotaryPositionEmbedding`, DINOv3). Defaults to
            `"all"`.
        dropout_rate: float in [0, 1). Dropout after the embedding, in the MLPs and after each
            attention. Defaults to 0.0.
        attention_dropout_rate: float in [0, 1). Dropout on the attention scores. Defaults to 0.0.
        drop_path_rate: float in [0, 1). Probability that a sample skips a residual branch
            (stochastic depth). Defaults to 0.0.
        drop_path_schedule: `"linear"` increases the rate from 0 in the first block to
            `drop_path_rate` in the last, `"constant"` uses it in every block. Defaults to
            `"linear"`.
        layer_scale_init_value: float above 0, or `None` for no LayerScale. Defaults to `None`.
        layer_norm_epsilon: float above 0. Defaults to 1e-6.
        num_merged_tokens: int, 0 or more. Number of tokens that each block merges into similar
            ones (`TokenMerging`). Faster and slightly less accurate; needs no training. Defaults
            to 0.
        remat: bool. Whether to use gradient checkpointing: training keeps only the inputs of the
            blocks and recomputes the rest in the backward pass. Less memory, more time, same
            results. Defaults to `False`.
        use_class_token: bool. Whether there is a class token. Defaults to `True`.
        num_register_tokens: int, 0 or more. Number of further learned tokens, after the class and
            the distillation token, in which the model can keep information about the whole image.
            Defaults to 0.
        use_qk_norm: bool. Whether each attention normalises queries and keys. Defaults to `False`.
        activation: name or callable, the activation of the MLPs. Defaults to `"gelu"`.
        use_gated_mlp: bool. Whether the MLPs have a gate. With `activation="silu"`, they are
            SwiGLU. Defaults to `False`.
        use_pre_norm: bool. Whether a LayerNormalization precedes the first block, as in CLIP.
            Defaults to `False`.
        use_final_norm: bool. Whether a LayerNormalization follows the last block. `False` is for
            classifiers that normalise after pooling (`use_head_norm`). Defaults to `True`.
        patch_dropout_rate: float in [0, 1). Share of the patches that each training step leaves
            out (`PatchDropout`), to save time. Defaults to 0.0.
        position_grid_size: int or (rows, columns). Grid of the learned positions. Where an image
            has another one, its positions are resampled in the graph. Defaults to `None`, the grid
            of `image_shape`; must be given for images of any size.
        pad_images: bool. Whether to add zeros at the bottom and at the right of images that
            `patch_size` does not divide. Defaults to `False`, which refuses them.
        keep_rate: float in (0, 1]. Share of the patch tokens that a block keeps, those that the
            class token attends to; the others become one token (`TokenSelection`). The blocks are
            those after a quarter, a half and three quarters of the depth: 3, 6 and 9 of 12, counted
            from 0. Train with it. Excludes `num_merged_tokens`. Defaults to 1.0, which keeps all.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.
        dtype: dtype policy of all layers. Defaults to the global one.
        name: string. Defaults to a generated name.
        trainable: bool. `False` freezes every layer. Defaults to `True`.
        quantization_config: quantization settings of the layers, as `get_config` returns them
            after `quantize`. Defaults to `None`.

    Input shape:
        (batch, *image_shape), normalised as `DeiTImageConverter` does.

    Output shape:
        (batch, num_prefix_tokens + rows * columns, hidden_dim). With `num_merged_tokens`, each
        block removes that many tokens, or half of its patch tokens if that is fewer. With
        `keep_rate`, up to three blocks leave `ceil(keep_rate * N) + 1` of N patch tokens.

    Raises:
        ValueError: if an argument is out of range, `patch_size` does not divide the image,
            `num_heads` does not divide `hidden_dim`, or arguments exclude each other.

    Example:

    >>> backbone = DeiTBackbone(
    ...     image_shape=(32, 48, 3),
    ...     patch_size=16,
    ...     num_layers=2,
    ...     num_heads=4,
    ...     hidden_dim=64,
    ...     intermediate_dim=256,
    ... )
    >>> backbone(keras.random.uniform((1, 32, 48, 3))).shape
    (1, 7, 64)
    >>> attention = keras.Model(backbone.input, backbone.attention_scores)
    >>> attention(keras.random.uniform((1, 32, 48, 3)))["block_1"].shape
    (1, 4, 7, 7)

    References:
        [Touvron et al., 2021](https://arxiv.org/abs/2012.12877) (DeiT);
        [Touvron et al., 2022](https://arxiv.org/abs/2204.07118) (DeiT III);
        [Darcet et al., 2024](https://arxiv.org/abs/2309.16588) (register tokens);
        [Liang et al., 2022](https://arxiv.org/abs/2202.07800) (`keep_rate`).
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        patch_size: int | tuple[int, int],
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        intermediate_dim: int,
        use_distillation_token: bool = False,
        position_scope: str = "all",
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_path_schedule: str = "linear",
        layer_scale_init_value: float | None = None,
        layer_norm_epsilon: float = 1e-6,
        num_merged_tokens: int = 0,
        remat: bool = False,
        use_class_token: bool = True,
        num_register_tokens: int = 0,
        use_qk_norm: bool = False,
        activation: str | Callable = "gelu",
        use_gated_mlp: bool = False,
        use_pre_norm: bool = False,
        use_final_norm: bool = True,
        patch_dropout_rate: float = 0.0,
        position_grid_size: int | tuple[int, int] | None = None,
        pad_images: bool = False,
        keep_rate: float = 1.0,
        data_format: str | None = None,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool | dict = True,
        quantization_config: dict | None = None,
    ) -> None:
        data_format = check_data_format(data_format)
        image_shape = check_image_shape(image_shape, data_format)
        rates = drop_path_rates(num_layers, drop_path_rate, drop_path_schedule)
        num_prefix_tokens = prefix_tokens(
            use_class_token, use_distillation_token, num_register_tokens
        )
        kinds = block_kinds(
            len(rates),
            num_merged_tokens,
            keep_rate,
            num_prefix_tokens,
            use_class_token,
            position_scope,
            patch_dropout_rate,
            image_shape,
        )
        grid_size, position_grid_size = grids(
            image_shape, patch_size, data_format, position_grid_size, position_scope
        )
        sublayer = SublayerArguments(dtype, trainable, quantization_config)

        embedding = Embedding(
            hidden_dim=hidden_dim,
            patch_size=patch_size,
            data_format=data_format,
            pad_images=pad_images,
            grid_size=grid_size,
            position_grid_size=position_grid_size,
            num_prefix_tokens=num_prefix_tokens,
            dropout_rate=dropout_rate,
            position_scope=position_scope,
            patch_dropout_rate=patch_dropout_rate,
            use_pre_norm=check_bool("use_pre_norm", use_pre_norm),
            layer_norm_epsilon=layer_norm_epsilon,
            sublayer=sublayer,
        )
        # Checks that patches divide the image
        embedding.patch_embedding.build((None, *image_shape))
        blocks = [
            block_class(
                num_heads,
                intermediate_dim,
                dropout_rate=dropout_rate,
                attention_dropout_rate=attention_dropout_rate,
                drop_path_rate=rate,
                layer_scale_init_value=layer_scale_init_value,
                layer_norm_epsilon=layer_norm_epsilon,
                remat=remat,
                use_qk_norm=use_qk_norm,
                activation=activation,
                use_gated_mlp=use_gated_mlp,
                **arguments,
                **sublayer(f"block_{index}"),
            )
            for index, (rate, (block_class, arguments)) in enumerate(zip(rates, kinds))
        ]
        use_final_norm = check_bool("use_final_norm", use_final_norm)
        final_norm = _norm(layer_norm_epsilon, sublayer("final_norm")) if use_final_norm else None

        images = keras.Input(image_shape, name="images")
        patches = embedding.patch_embedding(images)
        rotation = {}
        if position_scope == "rotary":
            rotation = {"rotation": embedding.rotation(patches, num_heads, sublayer)}
        states = _block_states(blocks, embedding.tokens(patches), rotation)
        super().__init__(
            inputs=images,
            outputs=states[-1][0] if final_norm is None else final_norm(states[-1][0]),
            name=name or unique_name("deit_backbone"),
            trainable=own_trainable(trainable),
        )
        self.dtype_policy = own_policy(dtype)
        self.patch_embedding = embedding.patch_embedding
        self.token_position_embedding = embedding.token_position_embedding
        self.blocks = blocks
        self.pre_norm = embedding.pre_norm
        self.final_norm = final_norm
        self.image_shape = image_shape
        self.use_class_token = bool(use_class_token)
        self.use_distillation_token = bool(use_distillation_token)
        self.num_register_tokens = int(num_register_tokens)
        self.position_scope = position_scope
        self.patch_dropout_rate = float(patch_dropout_rate)
        self.drop_path_rate = float(drop_path_rate)
        self.drop_path_schedule = drop_path_schedule
        self.num_merged_tokens = int(num_merged_tokens)
        self.keep_rate = float(keep_rate)
        self.position_grid_size = position_grid_size
        self._patches = patches
        self._states, self._rotation = states, rotation
        sublayer.freeze_variables(self._parts(), self)

    def _get_backbone(self):
        return self

    @property
    def data_format(self):
        return self.patch_embedding.data_format

    @property
    def image_size(self):
        """(height, width) in pixels; `(None, None)` for images of any size."""
        return split_image_shape(self.image_shape, self.data_format)[0]

    @property
    def num_channels(self):
        return split_image_shape(self.image_shape, self.data_format)[1]

    @property
    def patch_size(self):
        return self.patch_embedding.patch_size

    @property
    def grid_size(self):
        """(rows, columns) of patches; `(None, None)` for images of any size."""
        return grid_size_of(self.image_size, self.patch_size)

    def grid_size_of(self, image_size: int | tuple[int, int]) -> tuple[int, int]:
        """Returns (rows, columns) of the patches of an image, for a backbone of any image size.

        Args:
            image_size: int or (height, width), in pixels.

        Raises:
            ValueError: if `patch_size` does not divide the image and `pad_images` is `False`.
        """
        image_size = check_pair("image_size", image_size)
        image_shape = join_image_shape(image_size, self.num_channels, self.data_format)
        self.patch_embedding.compute_output_shape((None, *image_shape))  # checks the size
        return grid_size_of(image_size, self.patch_size)

    @property
    def pad_images(self):
        return self.patch_embedding.pad_images

    @property
    def num_prefix_tokens(self):
        """Number of tokens before the patches: class, distillation and register tokens."""
        return self.token_position_embedding.num_prefix_tokens

    @property
    def num_layers(self):
        return len(self.blocks)

    @property
    def num_heads(self):
        return self.blocks[0].num_heads

    @property
    def hidden_dim(self):
        return self.patch_embedding.hidden_dim

    @property
    def intermediate_dim(self):
        return self.blocks[0].intermediate_dim

    @property
    def dropout_rate(self):
        return self.token_position_embedding.dropout_rate

    @property
    def attention_dropout_rate(self):
        return self.blocks[0].attention_dropout_rate

    @property
    def layer_scale_init_value(self):
        return self.blocks[0].layer_scale_init_value

    @property
    def layer_norm_epsilon(self):
        return self.blocks[0].layer_norm_epsilon

    @property
    def remat(self):
        return self.blocks[0].remat

    @property
    def use_qk_norm(self):
        return self.blocks[0].use_qk_norm

    @property
    def activation(self):
        """The activation function of the MLPs."""
        return self.blocks[0].mlp.activation

    @property
    def use_gated_mlp(self):
        return self.blocks[0].use_gated_mlp

    @property
    def use_pre_norm(self):
        return self.pre_norm is not None

    @property
    def use_final_norm(self):
        return self.final_norm is not None

    @property
    def block_outputs(self):
        """The tokens after each block, as symbolic tensors.

        `{"block_0": (batch, tokens, hidden_dim), ...}`.
        """
        return {block.name: state[0] for block, state in zip(self.blocks, self._states[1:])}

    @property
    def attention_scores(self):
        """The attention scores of each block after the softmax, as symbolic tensors.

        `{"block_0": (batch, num_heads, tokens, tokens), ...}`. To compute them, use
        `keras.Model(backbone.input, backbone.attention_scores)`. The backbone itself does not
        compute them and keeps its fused attention.
        """
        attention_scores, _ = self._scored
        return dict(attention_scores)

    @functools.cached_property
    def _scored(self):
        """(attention scores, tokens after the last block), on a graph of their own."""
        state, attention_scores = self._states[0], {}
        for block in self.blocks:
            tokens, attention_scores[block.name], *token_sizes = ScoredAttention(block)(
                *state, **self._rotation
            )
            state = [tokens, *token_sizes]
        return attention_scores, tokens

    @functools.cached_property
    def _class_output(self):
        """The output of the class and distillation tokens alone, without the last block's work on
        the other tokens.
        """
        outputs = self.blocks[-1](
            *self._states[-2], **self._rotation, num_queries=self._num_class_tokens
        )
        return self._normalized(outputs[0] if isinstance(outputs, tuple) else outputs)

    @property
    def _num_class_tokens(self):
        return self.use_class_token + self.use_distillation_token

    def _normalized(self, tokens):
        return tokens if self.final_norm is None else self.final_norm(tokens)

    @classmethod
    def from_preset(
        cls,
        handle: str | os.PathLike,
        load_weights: bool = True,
        revision: str | None = None,
        **overrides: Any,
    ) -> Self:
        """Creates a backbone from a preset.

        Args:
            handle: one of

                1. a name from `DeiTBackbone.presets`, whose weights are downloaded from the Hugging
                   Face Hub (those of the digits model ship inside the package);
                2. `"hf://owner/repo"`;
                3. the path of a directory.

                Repositories and directories may be in the format of `save_to_preset`, timm or
                transformers, with weights in safetensors. A preset of a classifier works too.
            load_weights: bool. `False` creates the architecture with random weights. Defaults to
                `True`.
            revision: commit, tag or branch of a repository on the hub. Defaults to `None`, the
                newest commit of the main branch.
            **overrides: arguments of `DeiTBackbone` that differ from the preset. Another
                `image_shape` resamples the position embeddings; another `patch_size` resamples
                the patch embedding too. Overriding only `data_format` also reorders the axes of
                `image_shape`. `dtype` defaults to the global policy; quantized presets keep their
                own. Arguments that the weights were trained with, such as `num_heads`, can change
                only with `load_weights=False`.

        Raises:
            ValueError: if there is no such preset, a file of it is invalid, or the trained weights
                do not allow an override.
            ConnectionError: if the hub cannot be reached and the weights are not in its cache.
            OSError: if a download does not match the hub's checksum.
        """
        return load_backbone(cls, handle, load_weights, revision, overrides)

    def save_to_preset(self, directory: str | os.PathLike) -> None:
        """Saves the backbone as a directory of plain files.

        `from_preset` loads it, and `huggingface_hub.upload_folder` publishes it. An existing preset
        is replaced once the new one is complete. Its model card, README.md, is kept if you have
        edited it.

        Raises:
            ValueError: if `directory` is a file, contains other files, or contains the current
                directory; or if a weight is NaN or infinite.
            OSError: if the disk is full or cannot be written. An existing preset stays.
        """
        write_preset(directory, self, origin=self._origin)

    @staticmethod
    def get_layout_map(
        device_mesh: keras.distribution.DeviceMesh, model_parallel_dim_name: str = "model"
    ) -> keras.distribution.LayoutMap:
        """Returns a layout map that shards the weights of the backbone across devices.

        For `keras.distribution.ModelParallel(layout_map=...)`, on JAX. It also works for every
        model that contains a backbone. The MLP and the attention are sharded, the first layer of
        each by columns and the second by rows; all other weights are replicated. KerasHub's
        backbones have a method of the same name.

        Args:
            device_mesh: `keras.distribution.DeviceMesh`.
            model_parallel_dim_name: name of the mesh axis to shard over. Its size must divide
                `hidden_dim` and `intermediate_dim`. It should divide `num_heads`: otherwise each
                device gathers all heads in every block.

        Returns:
            `keras.distribution.LayoutMap`.

        Raises:
            ValueError: if the mesh has no such axis.

        Reference: [Shoeybi et al., 2019](https://arxiv.org/abs/1909.08053), section 3.
        """
        if model_parallel_dim_name not in device_mesh.axis_names:
            raise ValueError(
                f"The device mesh must have an axis {model_parallel_dim_name!r}. Received: axes "
                f"{', '.join(device_mesh.axis_names)}"
            )
        layout = keras.distribution.LayoutMap(device_mesh)
        for first in ("attention/qkv", "mlp/intermediate"):
            layout[f".*block_.*/{first}/kernel"] = (None, model_parallel_dim_name)
            layout[f".*block_.*/{first}/bias"] = (model_parallel_dim_name,)
        for second in ("attention/projection", "mlp/projection"):
            layout[f".*block_.*/{second}/kernel"] = (model_parallel_dim_name, None)
        return layout

    def _parts(self):
        """All layers with weights."""
        return [
            self.patch_embedding,
            self.token_position_embedding,
            *self.blocks,
            *(norm for norm in (self.pre_norm, self.final_norm) if norm is not None),
        ]

    def get_config(self):
        return {
            "name": self.name,
            **model_config(self, self._parts()),
            "image_shape": self.image_shape,
            "patch_size": self.patch_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim,
            "use_distillation_token": self.use_distillation_token,
            "position_scope": self.position_scope,
            "dropout_rate": self.dropout_rate,
            "attention_dropout_rate": self.attention_dropout_rate,
            "drop_path_rate": self.drop_path_rate,
            "drop_path_schedule": self.drop_path_schedule,
            "layer_scale_init_value": self.layer_scale_init_value,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "num_merged_tokens": self.num_merged_tokens,
            "remat": self.remat,
            "use_class_token": self.use_class_token,
            "num_register_tokens": self.num_register_tokens,
            "use_qk_norm": self.use_qk_norm,
            "activation": activation_config(self.activation),
            "use_gated_mlp": self.use_gated_mlp,
            "use_pre_norm": self.use_pre_norm,
            "use_final_norm": self.use_final_norm,
            "patch_dropout_rate": self.patch_dropout_rate,
            # Not the grid of the image, which `from_preset` would keep at another image size.
            "position_grid_size": None
            if self.position_grid_size == self.grid_size
            else self.position_grid_size,
            "pad_images": self.pad_images,
            "keep_rate": self.keep_rate,
            "data_format": self.data_format,
        }


def _norm(epsilon, arguments):
    return keras.layers.LayerNormalization(epsilon=epsilon, **arguments)


def _block_states(blocks, embeddings, rotation):
    """The inputs of each block and the outputs of the last: [tokens], or [tokens, token sizes]."""
    states = [[embeddings]]
    for block in blocks:
        outputs = block(*states[-1], **rotation)
        states.append(list(outputs) if isinstance(outputs, tuple) else [outputs])
    return states
