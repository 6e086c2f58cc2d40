"""What a wrong argument gets to hear, word for word."""

import keras
import numpy as np
import pytest

from keras_deit import layers
from tests.helpers import raises

pytestmark = pytest.mark.backend

RATE = "`{0}` must be a probability in [0, 1); use 0.0 to switch it off. Received: {0}={1!r}"
POSITIVE = "`{0}` must be a positive integer. Received: {0}={1!r}"


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, 10**400, float("nan"), "0.1", None, True])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("dropout_rate", lambda rate: layers.MLP(8, dropout_rate=rate)),
        ("dropout_rate", lambda rate: layers.TokenPositionEmbedding(1, 2, dropout_rate=rate)),
        ("dropout_rate", lambda rate: layers.MultiHeadSelfAttention(2, dropout_rate=rate)),
        (
            "attention_dropout_rate",
            lambda rate: layers.MultiHeadSelfAttention(2, attention_dropout_rate=rate),
        ),
        ("rate", lambda rate: layers.DropPath(rate)),
        ("rate", lambda rate: layers.PatchDropout(rate)),
        ("dropout_rate", lambda rate: layers.TransformerBlock(2, 8, dropout_rate=rate)),
        (
            "attention_dropout_rate",
            lambda rate: layers.TransformerBlock(2, 8, attention_dropout_rate=rate),
        ),
        ("drop_path_rate", lambda rate: layers.TransformerBlock(2, 8, drop_path_rate=rate)),
    ],
)
def test_rates(name, make, rate):
    with raises(RATE.format(name, rate)):
        make(rate)


@pytest.mark.parametrize("size", [0, -1, 2.0, "2", None, True])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("hidden_dim", lambda size: layers.PatchEmbedding(size, 4)),
        ("num_heads", lambda size: layers.MultiHeadSelfAttention(size)),
        ("intermediate_dim", lambda size: layers.MLP(size)),
        ("num_heads", lambda size: layers.TransformerBlock(size, 8)),
        ("intermediate_dim", lambda size: layers.TransformerBlock(2, size)),
        ("num_classes", lambda size: layers.DistillationHead(size)),
        ("head_dim", lambda size: layers.RotaryPositionEmbedding(size)),
        ("num_heads", lambda size: layers.AttentionPooling(size, 8)),
        ("num_branches", lambda size: layers.ParallelTransformerBlock(2, 8, size)),
        ("hidden_dim", lambda size: layers.HMLPStem(size)),
        ("hidden_dim", lambda size: layers.SimpleFeaturePyramid(size)),
        ("intermediate_dim", lambda size: layers.AttentionPooling(2, size)),
    ],
)
def test_sizes(name, make, size):
    with raises(POSITIVE.format(name, size)):
        make(size)


@pytest.mark.parametrize("value", ["no", 1, 0.0, None, [True]])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("flatten", lambda value: layers.PatchEmbedding(8, 2, flatten=value)),
        ("pad_images", lambda value: layers.PatchEmbedding(8, 2, pad_images=value)),
        ("use_bias", lambda value: layers.MultiHeadSelfAttention(2, use_bias=value)),
        ("use_qk_norm", lambda value: layers.MultiHeadSelfAttention(2, use_qk_norm=value)),
        ("use_gate", lambda value: layers.MLP(8, use_gate=value)),
        ("remat", lambda value: layers.TransformerBlock(2, 8, remat=value)),
        ("use_qk_norm", lambda value: layers.TransformerBlock(2, 8, use_qk_norm=value)),
        ("use_gated_mlp", lambda value: layers.TransformerBlock(2, 8, use_gated_mlp=value)),
        (
            "crop_to_aspect_ratio",
            lambda value: layers.DeiTImageConverter(8, crop_to_aspect_ratio=value),
        ),
    ],
)
def test_switches(name, make, value):
    """By its truth "no" would switch on."""
    with raises(f"`{name}` must be `True` or `False`. Received: {name}={value!r}"):
        make(value)
    assert make(np.True_).get_config()[name] is True


def test_pairs():
    with raises(
        "`patch_size` must be a positive integer, or a pair of them: vertical, then horizontal. "
        "Received: patch_size=(1, 2, 3)"
    ):
        layers.PatchEmbedding(8, (1, 2, 3))
    with raises("`patch_size` must be a positive integer. Received: patch_size=0"):
        layers.PatchEmbedding(8, 0)
    with raises("`grid_size` must be a positive integer. Received: grid_size='2'"):
        layers.TokenPositionEmbedding(1, "2")


def test_an_image_that_the_patch_size_does_not_divide():
    with raises(
        "`patch_size` must divide the image: height 225 is not a multiple of 16. Use 224 or 240, "
        "resize first, or use `pad_images=True`. "
        "Received: input shape (None, 225, 224, 3), data_format='channels_last', patch_size=(16, "
        "16)"
    ):
        layers.PatchEmbedding(8, 16).build((None, 225, 224, 3))
    with raises(
        "`patch_size` must divide the image: width 9 is not a multiple of 16. Use 16, resize first, "
        "or use `pad_images=True`. "
        "Received: input shape (None, 3, 16, 9), data_format='channels_first', patch_size=(16, 16)"
    ):
        layers.PatchEmbedding(8, 16, data_format="channels_first").build((None, 3, 16, 9))


def test_a_later_image_that_does_not_fit_does_not_change_the_batch():
    """A reshape with -1 for the batch made 36 samples of 32."""
    layer = layers.PatchEmbedding(16, 2, data_format="channels_last")
    layer.build((None, None, None, 3))
    with raises(
        "`patch_size` must divide the image: height 9 is not a multiple of 2. Use 8 or 10, resize "
        "first, or use `pad_images=True`. "
        "Received: input shape (32, 9, 8, 3), data_format='channels_last', patch_size=(2, 2)"
    ):
        layer.call(np.zeros((32, 9, 8, 3), "float32"))
    tokens = layers.TokenPositionEmbedding(0, (2, 3))
    tokens.build((None, None, 8))
    with pytest.raises(ValueError, match="expected axis 1 of input shape to have value 6"):
        tokens(np.zeros((2, 1, 8), "float32"))


def test_images_of_another_rank():
    with raises(
        "`PatchEmbedding` takes a batch of images (rank 4). Add a batch axis to a single image. "
        "Received: input shape (16, 16, 3)"
    ):
        layers.PatchEmbedding(8, 16).build((16, 16, 3))
    with raises(
        "`PatchEmbedding` needs a known number of channels. Received: input shape (None, 16, 16, "
        "None), data_format='channels_last'"
    ):
        layers.PatchEmbedding(8, 16).build((None, 16, 16, None))


def test_data_format():
    with raises(
        "`data_format` must be one of 'channels_last', 'channels_first'. Received: "
        "data_format='NHWC'"
    ):
        layers.PatchEmbedding(8, 16, data_format="NHWC")


def test_prefix_tokens_and_grid():
    with raises(
        "`num_prefix_tokens` must be a non-negative integer: 1 for the class token, 2 with the "
        "distillation token. Received: num_prefix_tokens=-1"
    ):
        layers.TokenPositionEmbedding(-1, 2)
    with raises(
        "`position_scope` must be one of 'all', 'patches', 'none'. Received: position_scope='some'"
    ):
        layers.TokenPositionEmbedding(1, 2, position_scope="some")
    with raises(
        "`grid_size` must match the number of patches: 2 x 3 = 6, but the input has 5. Use (image "
        "height / patch height, image width / patch width). Received: input shape (None, 5, 8), "
        "grid_size=(2, 3)"
    ):
        layers.TokenPositionEmbedding(1, (2, 3)).build((None, 5, 8))


@pytest.mark.parametrize(
    "layer",
    [
        layers.MultiHeadSelfAttention(3),
        layers.TransformerBlock(3, 8),
        layers.AttentionPooling(3, 8),
    ],
)
def test_heads_that_do_not_divide_the_width(layer):
    with raises(
        "`num_heads` must divide `hidden_dim`: 8 is not a multiple of 3. Received: num_heads=3, "
        "hidden_dim=8"
    ):
        layer.build((None, 5, 8))


@pytest.mark.parametrize(
    "layer",
    [
        layers.MultiHeadSelfAttention(2),
        layers.TransformerBlock(2, 8),
        layers.DistillationHead(2),
        layers.AttentionPooling(2, 8),
        layers.PatchDropout(0.5),
        layers.ParallelTransformerBlock(2, 8),
    ],
)
def test_inputs_that_are_not_tokens(layer):
    with raises(
        f"`{type(layer).__name__}` takes tokens of shape (batch, tokens, hidden_dim) with a known "
        "`hidden_dim`. "
        "Received: input shape (None, 8)"
    ):
        layer.build((None, 8))


@pytest.mark.parametrize("shape", [(None, 8), (None, 2, 2, None), (None, 2, 2, 2, 8)])
def test_inputs_that_are_neither_tokens_nor_a_feature_map(shape):
    with raises(
        "`TokenPositionEmbedding` takes tokens of shape (batch, tokens, hidden_dim), or a feature "
        "map of shape (batch, rows, columns, hidden_dim), with a known `hidden_dim`. "
        f"Received: input shape {shape}"
    ):
        layers.TokenPositionEmbedding(1, 2).build(shape)


def test_a_feature_map_has_no_mask():
    """Its mask (batch, rows, columns) does not fit the tokens."""
    masked = keras.layers.Masking()(np.ones((1, 2, 2, 8), "float32"))
    with pytest.raises(ValueError) as error:
        layers.TokenPositionEmbedding(1, 2)(masked)
    assert (
        "`TokenPositionEmbedding` takes a mask with tokens (batch, tokens, hidden_dim), not with a "
        "feature map. Received: input shape (1, 2, 2, 8)"
    ) in str(error.value)


def test_a_single_token_has_no_distillation_token():
    with raises(
        "`DistillationHead` reads a class token and a distillation token, so it needs at least 2 "
        "tokens: set "
        "`num_prefix_tokens=2` on TokenPositionEmbedding or `use_distillation_token=True` on "
        "DeiTBackbone. "
        "Received: input shape (None, 1, 8)"
    ):
        layers.DistillationHead(2).build((None, 1, 8))


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), "1e-4"])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("init_value", lambda value: layers.LayerScale(value)),
        (
            "layer_scale_init_value",
            lambda value: layers.TransformerBlock(2, 8, layer_scale_init_value=value),
        ),
        (
            "layer_norm_epsilon",
            lambda value: layers.TransformerBlock(2, 8, layer_norm_epsilon=value),
        ),
        (
            "layer_norm_epsilon",
            lambda value: layers.AttentionPooling(2, 8, layer_norm_epsilon=value),
        ),
        (
            "layer_norm_epsilon",
            lambda value: layers.SimpleFeaturePyramid(layer_norm_epsilon=value),
        ),
        ("crop_ratio", lambda value: layers.DeiTImageConverter(32, crop_ratio=value)),
        (
            "std",
            lambda value: layers.DeiTImageConverter(
                32, std=(1.0, value if value != "1e-4" else 0, 1.0)
            ),
        ),
    ],
)
def test_numbers_above_zero(name, make, value):
    if name == "std" and value == "1e-4":
        value = 0
    shown = float(value) if name == "std" else value
    with raises(f"`{name}` must be a number above 0. Received: {name}={shown!r}"):
        make(value)


def test_converter_arguments():
    with raises(
        "`crop_ratio` must be in (0, 1]: the crop cannot be larger than the resized image. "
        "Received: crop_ratio=1.1"
    ):
        layers.DeiTImageConverter(32, crop_ratio=1.1)
    with raises(
        "`interpolation` must be one of 'bicubic', 'bilinear', 'nearest'. Received: "
        "interpolation='lanczos'"
    ):
        layers.DeiTImageConverter(32, interpolation="lanczos")
    with raises(
        "`mean` and `std` must each be one number, or one for each channel. Received: mean=(0.1, "
        "0.2), std=(0.1, 0.2, 0.3)"
    ):
        layers.DeiTImageConverter(32, mean=(0.1, 0.2), std=(0.1, 0.2, 0.3))

    with raises("`mean` must be finite. Received: mean=(nan,)"):
        layers.DeiTImageConverter(32, mean=float("nan"), std=1.0)
    assert layers.DeiTImageConverter(32, mean=np.array([0.5]), std=np.float32(0.5)).mean == (0.5,)


def test_images_that_the_converter_cannot_take():
    with raises(
        "`mean` and `std` are for 3 channels, but the images have 1. Convert the images, or use "
        "one number for each of their channels. Received: images of shape (8, 8, 1), "
        "data_format='channels_last', mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)"
    ):
        layers.DeiTImageConverter(32).call(np.zeros((8, 8, 1), "uint8"))
    with raises(
        "`DeiTImageConverter` takes one image (rank 3) or a batch of images of one size (rank 4). "
        "Received: images of shape (8, 8)"
    ):
        layers.DeiTImageConverter(32).call(np.zeros((8, 8), "uint8"))


def test_a_config_with_an_unknown_or_a_missing_key_names_it():
    with pytest.raises(TypeError, match=r"passed to TransformerBlock: {'heads': 2}"):
        layers.TransformerBlock.from_config({"num_heads": 2, "intermediate_dim": 8, "heads": 2})
    with pytest.raises(
        TypeError, match=r"missing 1 required positional argument: 'intermediate_dim'"
    ):
        layers.TransformerBlock.from_config({"num_heads": 2})


@pytest.mark.parametrize("value", [{}, {"": 1}, {"": True, "mlp": "no"}, {3: True}, "no", None, 1])
def test_trainable_of_layers_with_sub_layers(value):
    """A dict without the layer's own value was a bare KeyError."""
    with raises(
        '`trainable` must be `True` or `False`, or a dict of them: the layer\'s own under "", and '
        f"those of its sub-layers by their paths. Received: trainable={value!r}"
    ):
        layers.TransformerBlock(2, 8, trainable=value)


@pytest.mark.parametrize("value", [3, "int8", [], {"mlp": 3}, {3: {}}])
def test_quantization_config_of_layers_with_sub_layers(value):
    """A string was a bare AttributeError."""
    with raises(
        "`quantization_config` must be `None`, or a dict of `keras.quantizers.QuantizationConfig` "
        "by the paths of sub-layers, as `get_config` returns it. "
        f"Received: quantization_config={value!r}"
    ):
        layers.MLP(8, quantization_config=value)


@pytest.mark.parametrize("value", [["all"], {"all"}, np.array(["all", "patches"]), b"all"])
def test_choices_that_cannot_be_compared(value):
    with raises(
        f"`position_scope` must be one of 'all', 'patches', 'none'. Received: position_scope={value!r}"
    ):
        layers.TokenPositionEmbedding(1, 2, position_scope=value)


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("value", ["0.5", None, [], [None], [[0.5]], 10**400, True, 1j])
def test_mean_and_std(name, value):
    """Their errors named neither the argument nor the value."""
    with raises(f"`{name}` must be a number, or one for each channel. Received: {name}={value!r}"):
        layers.DeiTImageConverter(8, **{name: value})


@pytest.mark.parametrize("value", ["no such", 3, {"a": 1}, [None]])
def test_activations(value):
    with raises(
        "`activation` must be the name of one of Keras' activations, a function, or `None`. "
        f"Received: activation={value!r}"
    ):
        layers.MLP(8, activation=value)


@pytest.mark.parametrize("seed", [-1, 0.5, "1", ValueError("x")])
def test_seeds(seed):
    with raises(f"`seed` must be a non-negative integer. Received: seed={seed!r}"):
        layers.DropPath(0.0, seed=seed)
    with raises(f"`seed` must be a non-negative integer. Received: seed={seed!r}"):
        layers.PatchDropout(0.0, seed=seed)


def test_sizes_that_no_tensor_has():
    with raises(
        "`hidden_dim` must be at most 9223372036854775807, the largest size of a tensor. "
        f"Received: hidden_dim={10**30}"
    ):
        layers.PatchEmbedding(10**30, 2)


@pytest.mark.parametrize("layer", [layers.MultiHeadSelfAttention(2), layers.TransformerBlock(2, 8)])
def test_a_switch_of_a_call(layer):
    with pytest.raises(ValueError) as error:
        layer(np.ones((1, 3, 4), "float32"), return_attention_scores="no")
    assert (
        "`return_attention_scores` must be `True` or `False`. Received: "
        "return_attention_scores='no'"
    ) in str(error.value)


@pytest.mark.parametrize("layer", [layers.MultiHeadSelfAttention(2), layers.TransformerBlock(2, 8)])
def test_a_rotation_for_another_image(layer):
    rotation = layers.RotaryPositionEmbedding(8)(np.zeros((1, 1, 3, 4)))
    with pytest.raises(ValueError) as error:
        layer(np.ones((1, 3, 16), "float32"), rotation=rotation)
    assert (
        "`rotation` must have shape (2, tokens, head_dim / 2), here (2, 3, 4): use the output of "
        "`RotaryPositionEmbedding(8, num_prefix_tokens)` for the same image. "
        "Received: rotation=of shape (2, 4, 4), input shape (1, 3, 16)"
    ) in str(error.value)


def test_rotary_positions_of_odd_pairs_and_of_tokens():
    with raises(
        "`head_dim` must be a multiple of 4: each of the two coordinates rotates pairs of values. "
        "Received: head_dim=6"
    ):
        layers.RotaryPositionEmbedding(6)
    with raises(
        "`RotaryPositionEmbedding` takes a feature map of shape (batch, rows, columns, channels), "
        "such as the output of `PatchEmbedding(flatten=False)`. Received: input shape (2, 6, 8)"
    ):
        layers.RotaryPositionEmbedding(8).build((2, 6, 8))


def test_more_outputs_than_tokens():
    with pytest.raises(ValueError) as error:
        layers.MultiHeadSelfAttention(2)(np.ones((1, 3, 4), "float32"), num_queries=4)
    assert (
        "`num_queries` must be at most the number of tokens, 3. Received: num_queries=4"
    ) in str(error.value)
