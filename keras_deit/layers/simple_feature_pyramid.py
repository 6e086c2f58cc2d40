"""Feature maps of several sizes from one."""

import re
from typing import Any

import keras
from keras import ops

from keras_deit.arguments import (
    check_not_zero,
    check_positive_int,
    check_positive_number,
    check_shape,
)
from keras_deit.data_formats import check_data_format, join_image_shape, split_image_shape
from keras_deit.layers import kernels
from keras_deit.layers.composite import CompositeLayer
from keras_deit.layers.initialization import deit_initializer
from keras_deit.layers.inputs import as_floats


@keras.saving.register_keras_serializable(package="keras_deit")
class SimpleFeaturePyramid(CompositeLayer):
    """Makes the feature maps that detectors and segmenters read from the one map of a plain ViT.

    Level `"P4"` has stride `2**4 = 16`: one position for each 16 x 16 pixels. For each level,
    `x = resized(inputs)`, then `x = norm(projection(x))` and `outputs[level] = norm(smoothing(x))`,
    where `projection` is a 1 x 1 convolution, `smoothing` a 3 x 3 convolution, and `norm` a
    LayerNormalization of the channels. `resized` depends on the distance from `input_level`:

    - two levels finer: `upsampling(gelu(norm(upsampling(inputs))))`;
    - one level finer: `upsampling(inputs)`;
    - the same level: `inputs`;
    - one level coarser: the maximum of each 2 x 2 positions.

    `upsampling` is a transposed convolution, 2 x 2 with stride 2, that halves the channels. All but
    the 3 x 3 convolutions are computed by `Dense` layers, which support quantization and LoRA.

    Args:
        hidden_dim: int. Number of channels of each output. Defaults to 256.
        levels: tuple of strings. Levels to compute: `input_level`, up to two finer and one coarser.
            Defaults to `("P2", "P3", "P4", "P5")`.
        input_level: string. Level of the input, as in `DeiTBackbone.pyramid_outputs`: `"P4"` for a
            patch size of 16 or 14. Defaults to `"P4"`.
        layer_norm_epsilon: float above 0. Defaults to 1e-6.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.

    Input shape:
        (batch, rows, columns, channels), or (batch, channels, rows, columns) with
        `data_format="channels_first"`. Rows and columns may be unknown.

    Output shape:
        `{level: (batch, level rows, level columns, hidden_dim)}`, or `hidden_dim` first with
        `data_format="channels_first"`. For an input of `"P4"`, level rows are `4 * rows` in `"P2"`,
        `2 * rows` in `"P3"`, `rows` in `"P4"` and `ceil(rows / 2)` in `"P5"`.

    Raises:
        ValueError: if an argument is out of range, or the number of channels cannot be halved as
            often as the levels need.

    Example:

    >>> feature_map = keras.random.uniform((2, 6, 4, 64))
    >>> outputs = SimpleFeaturePyramid(hidden_dim=32)(feature_map)
    >>> outputs["P2"].shape
    (2, 24, 16, 32)
    >>> outputs["P5"].shape
    (2, 3, 2, 32)

    Reference: [Li et al., 2022](https://arxiv.org/abs/2203.16527) (ViTDet), section 3. Equal to
    detectron2's `SimpleFeaturePyramid`, except that the coarser level of an odd size is rounded up.
    """

    def __init__(
        self,
        hidden_dim: int = 256,
        levels: tuple[str, ...] = ("P2", "P3", "P4", "P5"),
        input_level: str = "P4",
        layer_norm_epsilon: float = 1e-6,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        hidden_dim = check_positive_int("hidden_dim", hidden_dim)
        _check_input_level(input_level)
        levels = _check_levels(levels, input_level)
        layer_norm_epsilon = check_positive_number("layer_norm_epsilon", layer_norm_epsilon)
        data_format = check_data_format(data_format)
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.levels = levels
        self.input_level = input_level
        self.layer_norm_epsilon = layer_norm_epsilon
        self.data_format = data_format
        for level in levels:
            steps = _number(level) - _number(input_level)
            sublayer = _Level(steps, hidden_dim, layer_norm_epsilon, **self.sublayer(level))
            setattr(self, level, sublayer)

    def build(self, input_shape):
        size, channels = self._size_and_channels(input_shape)
        for sublayer in self.sublayers:
            sublayer.build((input_shape[0], *size, channels))
        axis = 1 if self.data_format == "channels_first" else 3
        self.input_spec = keras.InputSpec(ndim=4, axes={axis: channels})
        self.built = True

    def call(self, inputs):
        inputs = as_floats(self, inputs)
        self._size_and_channels(inputs.shape)
        if self.data_format == "channels_last":
            return {level.name: level(inputs) for level in self.sublayers}
        # TensorFlow has no convolutions of this format on a CPU.
        inputs = ops.transpose(inputs, (0, 2, 3, 1))
        return {level.name: ops.transpose(level(inputs), (0, 3, 1, 2)) for level in self.sublayers}

    def compute_output_shape(self, input_shape):
        size, channels = self._size_and_channels(input_shape)
        shapes = {}
        for level in self.sublayers:
            batch, *level_size, dim = level.compute_output_shape((input_shape[0], *size, channels))
            shapes[level.name] = (batch, *join_image_shape(level_size, dim, self.data_format))
        return shapes

    def _size_and_channels(self, input_shape):
        """((rows, columns), channels) of a feature map."""
        check_shape("SimpleFeaturePyramid", input_shape)
        if len(input_shape) != 4:
            raise ValueError(
                "`SimpleFeaturePyramid` takes a batch of feature maps (rank 4). Add a batch axis "
                f"to a single map. Received: input shape {tuple(input_shape)}"
            )
        check_not_zero("SimpleFeaturePyramid", "position", input_shape)
        size, channels = split_image_shape(input_shape, self.data_format)
        halvings = max(0, _number(self.input_level) - min(map(_number, self.levels)))
        if channels is None or channels % 2**halvings:
            raise ValueError(
                "`SimpleFeaturePyramid` needs a known number of channels that is a multiple of "
                f"{2**halvings}, because each finer level halves it. Received: input shape "
                f"{tuple(input_shape)}, data_format={self.data_format!r}, levels={self.levels}, "
                f"input_level={self.input_level!r}"
            )
        return size, channels

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "levels": self.levels,
            "input_level": self.input_level,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "data_format": self.data_format,
        }


class _Level(CompositeLayer):
    """One level of the pyramid, `steps` levels coarser than its input: from -2 to 1.

    A chain of layers, (batch, rows, columns, channels) to (batch, level rows, level columns,
    hidden_dim).
    """

    def __init__(self, steps, hidden_dim, layer_norm_epsilon, **kwargs):
        super().__init__(**kwargs)
        self.steps = steps
        self.hidden_dim = hidden_dim
        self.layer_norm_epsilon = layer_norm_epsilon

    def build(self, input_shape):
        channels = input_shape[-1]
        if self.steps == 1:
            # Pads odd sizes, so that no position is left out
            self.pooling = keras.layers.MaxPooling2D(
                2, padding="same", data_format="channels_last", **self.sublayer("pooling")
            )
        if self.steps < 0:
            self.upsampling = _Upsampling(channels // 2, **self.sublayer("upsampling"))
        if self.steps == -2:
            self.upsampling_norm = self._norm("upsampling_norm")
            self.activation = keras.layers.Activation(kernels.gelu, **self.sublayer("activation"))
            self.second_upsampling = _Upsampling(
                channels // 4, **self.sublayer("second_upsampling")
            )
        # A 1 x 1 convolution. The norms behind have the biases.
        self.projection = keras.layers.Dense(
            self.hidden_dim,
            use_bias=False,
            kernel_initializer=deit_initializer(),
            **self.sublayer("projection"),
        )
        self.projection_norm = self._norm("projection_norm")
        self.smoothing = keras.layers.Conv2D(
            self.hidden_dim,
            3,
            padding="same",
            use_bias=False,
            data_format="channels_last",
            kernel_initializer=deit_initializer(),
            **self.sublayer("smoothing"),
        )
        self.smoothing_norm = self._norm("smoothing_norm")
        shape = input_shape
        for layer in self.sublayers:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        self.built = True

    def call(self, inputs):
        x = inputs
        for layer in self.sublayers:
            if isinstance(layer, keras.layers.LayerNormalization):
                x = kernels.layer_norm(layer, x)
            elif isinstance(layer, keras.layers.Dense):
                x = kernels.dense(layer, x)
            else:
                x = layer(x)
        return x

    def compute_output_shape(self, input_shape):
        batch, *size, _ = input_shape
        return (batch, *(_resized(side, self.steps) for side in size), self.hidden_dim)

    def _norm(self, name):
        return keras.layers.LayerNormalization(
            epsilon=self.layer_norm_epsilon, **self.sublayer(name)
        )


class _Upsampling(CompositeLayer):
    """A transposed convolution, 2 x 2 with stride 2: (B, R, C, channels) to (B, 2R, 2C, filters).

    As a matrix product, because the stride is the kernel's size: each position makes 2 x 2 others.
    On a CPU, JAX takes 20 times as long to train Keras' `Conv2DTranspose` (benchmarks/LOG.md).
    """

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.projection = keras.layers.Dense(
            4 * filters,
            use_bias=False,
            kernel_initializer=deit_initializer(),
            **self.sublayer("projection"),
        )

    def build(self, input_shape):
        self.projection.build((None, input_shape[-1]))
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")
        self.built = True

    def call(self, inputs):
        batch, rows, columns, _ = ops.shape(inputs)
        x = kernels.dense(self.projection, inputs)
        x = ops.reshape(x, (-1, columns, 2, 2 * self.filters))  # (B * R, C, 2, 2 * filters)
        x = ops.transpose(x, (0, 2, 1, 3))  # (B * R, 2, C, 2 * filters)
        return ops.reshape(x, (batch, 2 * rows, 2 * columns, self.filters)) + self.bias

    def compute_output_shape(self, input_shape):
        batch, *size, _ = input_shape
        return (batch, *(_resized(side, -1) for side in size), self.filters)


def _resized(size, steps):
    if size is None:
        return None
    return -(-size // 2) if steps == 1 else size * 2**-steps


def _check_input_level(level):
    if not _is_level(level):
        raise ValueError(
            "`input_level` must be the name of a level, such as 'P4' for a stride of 2**4 pixels. "
            f"Received: input_level={level!r}"
        )


def _check_levels(levels, input_level):
    number = _number(input_level)
    within = [f"P{level}" for level in range(max(0, number - 2), number + 2)]
    is_list = isinstance(levels, (list, tuple)) and all(map(_is_level, levels))
    if not is_list or not levels or len({*levels}) < len(levels) or not {*levels} <= {*within}:
        raise ValueError(
            f"`levels` must be different levels of {', '.join(map(repr, within))}: those that the "
            f"pyramid can make of `input_level`. Received: levels={levels!r}, "
            f"input_level={input_level!r}"
        )
    return tuple(levels)


def _is_level(level):
    return isinstance(level, str) and re.fullmatch(r"P(0|[1-9][0-9]?)", level) is not None


def _number(level):
    return int(level.removeprefix("P"))
