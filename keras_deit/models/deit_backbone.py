"""The vision transformer up to its last LayerNorm."""

import functools
import math

import keras
import numpy as np
from keras import ops

from keras_deit.arguments import (
    check_choice,
    check_non_negative_int,
    check_pair,
    check_positive_int,
    check_rate,
)
from keras_deit.layers.composite import (
    SublayerArguments,
    own_policy,
    own_trainable,
    sublayers_config,
)
from keras_deit.layers.merging_transformer_block import MergingTransformerBlock
from keras_deit.layers.naming import unique_name
from keras_deit.layers.patch_embedding import PatchEmbedding
from keras_deit.layers.scored_attention import ScoredAttention
from keras_deit.layers.token_position_embedding import TokenPositionEmbedding
from keras_deit.layers.transformer_block import TransformerBlock
from keras_deit.models.preset_model import (
    PresetModel,
    argument_names,
    check_overrides,
    load_backbone,
)
from keras_deit.presets.directory import write_preset
from keras_deit.presets.handles import find_preset

DROP_PATH_SCHEDULES = ("linear", "constant")


@keras.saving.register_keras_serializable(package="keras_deit")
class DeiTBackbone(PresetModel):
    """A DeiT without its head: normalised images to tokens, as a functional graph over the layers
    of `keras_deit.layers`.

    `PatchEmbedding`, `TokenPositionEmbedding`, `num_layers` times `TransformerBlock`,
    `LayerNormalization`. The defaults are those of DeiT; DeiT III has `position_scope="patches"`,
    `layer_scale_init_value=1e-4` and `drop_path_schedule="constant"`.

    Args:
        image_shape: (height, width, channels), or (channels, height, width) with
            `"channels_first"`; pixels. Need not be square.
        patch_size: int or (height, width), in pixels. Must divide the image.
        num_layers: int. Number of transformer blocks.
        num_heads: int. Attention heads of a block. Must divide `hidden_dim`.
        hidden_dim: int. Width D of a token.
        intermediate_dim: int. Width inside the MLP of a block.
        use_distillation_token: bool. Whether a distillation token follows the class token. Defaults
            to `False`.
        position_scope: `"all"` (DeiT: prefix tokens have positions too) or `"patches"` (DeiT III).
            Defaults to `"all"`.
        dropout_rate: float in [0, 1). Dropout after the embedding, in the MLPs and after each
            attention. Defaults to 0.0.
        attention_dropout_rate: float in [0, 1). Dropout on the attention scores. Defaults to 0.0.
        drop_path_rate: float in [0, 1). Probability that a sample skips a residual branch. Defaults
            to 0.0.
        drop_path_schedule: `"linear"` (from 0 in the first block to `drop_path_rate` in the last)
            or `"constant"` (the same in all). Defaults to `"linear"`.
        layer_scale_init_value: float above 0, or `None` for no LayerScale. Defaults to `None`.
        layer_norm_epsilon: float above 0. Defaults to 1e-6, that of every DeiT.
        num_merged_tokens: int, 0 or more. How many tokens each block merges into others that are
            alike (`TokenMerging`): faster, a little less accurate, and no training needed. Defaults
            to 0.
        remat: bool. Whether training keeps only the blocks' inputs, and computes the rest again for
            the gradient: less memory, more time, the same numbers. Defaults to `False`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.
        dtype: dtype policy of all layers. Defaults to the global one.
        name: string. Defaults to a generated one.
        trainable: bool. `False` freezes every layer. Defaults to `True`.
        quantization_config: what `quantize` was told of each layer, as `get_config` writes it.
            Defaults to `None`.

    Input shape:
        (batch, *image_shape), normalised as `DeiTImageConverter` does.

    Output shape:
        (batch, num_prefix_tokens + rows * columns, hidden_dim), after the last LayerNorm. Each
        block has `num_merged_tokens` fewer.

    Raises:
        ValueError: an argument out of range, or sizes that do not divide.

    Example:

    >>> backbone = DeiTBackbone(
    ...     image_shape=(32, 48, 3), patch_size=16, num_layers=2, num_heads=4, hidden_dim=64, intermediate_dim=256
    ... )
    >>> backbone(keras.random.uniform((1, 32, 48, 3))).shape
    (1, 7, 64)
    >>> attention = keras.Model(backbone.input, backbone.attention_scores)
    >>> attention(keras.random.uniform((1, 32, 48, 3)))["block_1"].shape
    (1, 4, 7, 7)

    References:
        [Touvron et al., 2021](https://arxiv.org/abs/2012.12877) (DeiT);
        [Touvron et al., 2022](https://arxiv.org/abs/2204.07118) (DeiT III).
    """

    def __init__(
        self,
        image_shape,
        patch_size,
        num_layers,
        num_heads,
        hidden_dim,
        intermediate_dim,
        use_distillation_token=False,
        position_scope="all",
        dropout_rate=0.0,
        attention_dropout_rate=0.0,
        drop_path_rate=0.0,
        drop_path_schedule="linear",
        layer_scale_init_value=None,
        layer_norm_epsilon=1e-6,
        num_merged_tokens=0,
        remat=False,
        data_format=None,
        dtype=None,
        name=None,
        trainable=True,
        quantization_config=None,
    ):
        sublayer = SublayerArguments(dtype, trainable, quantization_config).of
        data_format = data_format or keras.config.image_data_format()
        check_choice("data_format", data_format, ("channels_last", "channels_first"))
        image_shape = _check_image_shape(image_shape, data_format)
        patch_size = check_pair("patch_size", patch_size)
        num_layers = check_positive_int("num_layers", num_layers)
        num_merged_tokens = check_non_negative_int("num_merged_tokens", num_merged_tokens)
        drop_path_rate = check_rate("drop_path_rate", drop_path_rate)
        check_choice("drop_path_schedule", drop_path_schedule, DROP_PATH_SCHEDULES)
        patch_embedding = PatchEmbedding(
            hidden_dim,
            patch_size,
            data_format=data_format,
            **sublayer("patch_embedding"),
        )
        # Refuses an image that the patch size does not divide
        patch_embedding.build((None, *image_shape))
        height, width = image_shape[1:] if data_format == "channels_first" else image_shape[:2]
        grid_size = (height // patch_size[0], width // patch_size[1])
        num_prefix_tokens = 2 if use_distillation_token else 1
        token_position_embedding = TokenPositionEmbedding(
            num_prefix_tokens,
            grid_size,
            position_scope=position_scope,
            dropout_rate=dropout_rate,
            **sublayer("token_position_embedding"),
        )
        if drop_path_schedule == "linear":
            drop_path_rates = np.linspace(0.0, drop_path_rate, num_layers)
        else:
            drop_path_rates = np.full(num_layers, drop_path_rate)
        merging = (
            {"num_merged_tokens": num_merged_tokens, "num_prefix_tokens": num_prefix_tokens}
            if num_merged_tokens
            else {}
        )
        block_class = MergingTransformerBlock if num_merged_tokens else TransformerBlock
        blocks = [
            block_class(
                num_heads,
                intermediate_dim,
                dropout_rate=dropout_rate,
                attention_dropout_rate=attention_dropout_rate,
                drop_path_rate=float(rate),
                layer_scale_init_value=layer_scale_init_value,
                layer_norm_epsilon=layer_norm_epsilon,
                remat=remat,
                **merging,
                **sublayer(f"block_{index}"),
            )
            for index, rate in enumerate(drop_path_rates)
        ]
        final_norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, **sublayer("final_norm")
        )

        inputs = keras.Input(image_shape, name="images")
        # What enters each block: tokens, and their sizes after a merge.
        states = [[token_position_embedding(patch_embedding(inputs))]]
        for block in blocks:
            outputs = block(*states[-1])
            states.append(list(outputs) if isinstance(outputs, tuple) else [outputs])
        outputs = final_norm(states[-1][0])
        name = name or unique_name("deit_backbone")
        super().__init__(
            inputs=inputs, outputs=outputs, name=name, trainable=own_trainable(trainable)
        )

        self.dtype_policy = own_policy(dtype)
        self.patch_embedding = patch_embedding
        self.token_position_embedding = token_position_embedding
        self.blocks = blocks
        self.final_norm = final_norm
        self.image_shape = image_shape
        self.patch_size = patch_size
        self.grid_size = grid_size
        self.num_layers = num_layers
        self.num_heads = blocks[0].num_heads
        self.hidden_dim = patch_embedding.hidden_dim
        self.intermediate_dim = blocks[0].intermediate_dim
        self.use_distillation_token = bool(use_distillation_token)
        self.num_prefix_tokens = num_prefix_tokens
        self.position_scope = position_scope
        self.dropout_rate = token_position_embedding.dropout_rate
        self.attention_dropout_rate = blocks[0].attention_dropout_rate
        self.drop_path_rate = drop_path_rate
        self.drop_path_schedule = drop_path_schedule
        self.layer_scale_init_value = blocks[0].layer_scale_init_value
        self.layer_norm_epsilon = blocks[0].layer_norm_epsilon
        self.num_merged_tokens = num_merged_tokens
        self.remat = bool(remat)
        self.data_format = data_format
        self._block_outputs = {
            block.name: tokens for block, (tokens, *_) in zip(blocks, states[1:])
        }
        self._embeddings = states[0][0]
        self._last_block_inputs = states[-2]

    @property
    def block_outputs(self):
        """`{"block_0": (batch, tokens, hidden_dim), ...}`: the residual stream after each block, as
        symbolic tensors.
        """
        return dict(self._block_outputs)

    @property
    def attention_scores(self):
        """`{"block_0": (batch, num_heads, tokens, tokens), ...}`: each block's scores after the
        softmax, as symbolic tensors.

        `keras.Model(backbone.input, backbone.attention_scores)` computes them; the backbone itself
        does not.
        """
        attention_scores, _ = self._scored
        return dict(attention_scores)

    @functools.cached_property
    def _scored(self):
        """(attention scores, what leaves the last block), on a path of their own, so that the model
        keeps the fused attention.
        """
        state, attention_scores = [self._embeddings], {}
        for block in self.blocks:
            tokens, attention_scores[block.name], *token_sizes = ScoredAttention(block)(*state)
            state = [tokens, *token_sizes]
        return attention_scores, tokens

    @functools.cached_property
    def _prefix_output(self):
        """The prefix tokens of the output, without the patch tokens' part of the last block, which
        they do not need.
        """
        outputs = self.blocks[-1](*self._last_block_inputs, num_queries=self.num_prefix_tokens)
        return self.final_norm(outputs[0] if isinstance(outputs, tuple) else outputs)

    @functools.cached_property
    def pyramid_outputs(self):
        """`{"P4": (batch, rows, columns, hidden_dim)}`: the final patch tokens as a feature map, as
        a symbolic tensor.

        The level is the power of two nearest to the patch size: `"P4"` for patches of 16 or 14
        pixels, `"P2"` for 4. With `"channels_first"` the map is (batch, hidden_dim, rows, columns).
        Blocks that merge tokens leave no feature map.
        """
        if self.num_merged_tokens:
            return _NoFeatureMaps(self.num_merged_tokens)
        x = self.output[:, self.num_prefix_tokens :]
        x = ops.reshape(x, (-1, *self.grid_size, self.hidden_dim))
        if self.data_format == "channels_first":
            x = ops.transpose(x, (0, 3, 1, 2))
        level = round(math.log2(math.prod(self.patch_size)) / 2)
        return {f"P{level}": x}

    @classmethod
    def from_preset(cls, handle, load_weights=True, **overrides):
        """A backbone by name or from a directory.

        Args:
            handle: a name of `DeiTBackbone.presets`, whose original weights come from the Hugging
                Face Hub (the digits model's are in the package); `"hf://owner/repo"`; or a
                directory. Repositories and directories are as `save_to_preset` writes them or as
                timm and transformers do (weights in safetensors; no pickle is opened). A
                classifier's serves, too.
            load_weights: bool. `False` gives the architecture with random weights. Defaults to
                `True`.
            **overrides: any argument of `DeiTBackbone`. `dtype` defaults to the global policy,
                whatever the weights were saved in; a quantized preset keeps its own. With another
                `image_shape` the trained positions are resampled; another `data_format` alone turns
                it. What would make another model of the trained weights, as another `num_heads`,
                needs `load_weights=False`.

        Raises:
            ValueError: no such preset, files that are not as their writer left them, or an override
                that the trained weights cannot take.
            ConnectionError: the hub cannot be reached, and the weights are not in its cache.
            OSError: the download is not what the hub promises.
        """
        check_overrides(overrides, argument_names(cls))
        return load_backbone(
            cls, find_preset(handle), load_weights, overrides, source=f"preset {str(handle)!r}"
        )

    def save_to_preset(self, directory):
        """Writes the backbone as a directory of plain files, which `from_preset` reads and
        `huggingface_hub.upload_folder` publishes.

        A preset that is there is replaced, whole or not at all; its README.md, the model card,
        stays if you have edited it.

        Raises:
            ValueError: `directory` is a file, or holds files that are not of a preset.
        """
        write_preset(directory, self, origin=self._origin)

    @staticmethod
    def get_layout_map(device_mesh, model_parallel_dim_name="model"):
        """How the weights of a backbone, and of all that contains one, are split over devices; the
        rest is on each of them.

        Attention and the inside of the MLP are split: what enters by columns, what leaves by rows.
        For `keras.distribution.ModelParallel(layout_map=...)`, on JAX, by KerasHub's name. What the
        devices send each other is counted in docs/sharding.md.

        Args:
            device_mesh: `keras.distribution.DeviceMesh`.
            model_parallel_dim_name: name of its axis to split over. Its size must divide
                `hidden_dim` and `intermediate_dim`, and should divide `num_heads`: else every block
                gathers its heads on each device.

        Returns:
            `keras.distribution.LayoutMap`.

        Raises:
            ValueError: the mesh has no such axis.

        Reference: [Shoeybi et al., 2019](https://arxiv.org/abs/1909.08053), section 3.
        """
        if model_parallel_dim_name not in device_mesh.axis_names:
            raise ValueError(
                f"The device mesh must have an axis {model_parallel_dim_name!r}. Received: axes "
                f"{', '.join(device_mesh.axis_names)}"
            )
        layout = keras.distribution.LayoutMap(device_mesh)
        for entry in ("attention/qkv", "mlp/intermediate"):
            layout[f".*block_.*/{entry}/kernel"] = (None, model_parallel_dim_name)
            layout[f".*block_.*/{entry}/bias"] = (model_parallel_dim_name,)
        for projection in ("attention/projection", "mlp/projection"):
            layout[f".*block_.*/{projection}/kernel"] = (model_parallel_dim_name, None)
        return layout

    def get_config(self):
        return {
            "name": self.name,
            **sublayers_config(
                self,
                [
                    self.patch_embedding,
                    self.token_position_embedding,
                    *self.blocks,
                    self.final_norm,
                ],
            ),
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
            "data_format": self.data_format,
        }


def _check_image_shape(image_shape, data_format):
    axes = (
        "(channels, height, width)"
        if data_format == "channels_first"
        else "(height, width, channels)"
    )
    if not isinstance(image_shape, (tuple, list)) or len(image_shape) != 3:
        raise ValueError(
            f"`image_shape` must be {axes} for data_format={data_format!r}. Received: "
            f"image_shape={image_shape!r}"
        )
    return tuple(check_positive_int("image_shape", size) for size in image_shape)


class _NoFeatureMaps(dict):
    """Of a backbone that merges: empty, and says why when a level is asked for.

    Not an error of the property itself, which PyTorch's tracer reads of every model that it
    exports.
    """

    def __init__(self, num_merged_tokens):
        super().__init__()
        self.num_merged_tokens = num_merged_tokens

    def __missing__(self, level):
        raise ValueError(
            "Merged tokens have no place in the image: for `pyramid_outputs` make the backbone "
            "with `num_merged_tokens=0`. "
            f"Received: num_merged_tokens={self.num_merged_tokens}"
        )
