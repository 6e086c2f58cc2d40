"""What the arguments of a backbone and a classifier imply about the shapes of their weights."""

import math

from keras_deit.arguments import as_pair
from keras_deit.data_formats import grid_size_of, split_image_shape

# Far above any published vision transformer
_MOST_PARAMETERS = 2**33


def position_grid_size(backbone_config):
    """(rows, columns) of the learned positions."""
    if backbone_config.get("position_grid_size") is not None:
        return as_pair(backbone_config["position_grid_size"])
    image_size, _ = _split(backbone_config)
    return grid_size_of(image_size, as_pair(backbone_config["patch_size"]))


def refuse_unknown_sizes(backbone_config, where):
    """Refuses a file that leaves more sizes open than the height and the width of the images."""
    image_size, channels = _split(backbone_config)
    position_grid_size = backbone_config.get("position_grid_size")
    is_any_size = image_size == (None, None)
    has_positions = backbone_config.get("position_scope") != "rotary"
    if (
        channels is None
        or (None in image_size and not is_any_size)
        or (is_any_size and has_positions and position_grid_size is None)
    ):
        raise ValueError(
            f"'image_shape' in {where} may have null for both height and width, and then needs "
            "'position_grid_size'. Restore the file. Received: image_shape="
            f"{backbone_config['image_shape']}, position_grid_size={position_grid_size}"
        )


def num_channels(backbone_config):
    _, channels = _split(backbone_config)
    return channels


def num_prefix_tokens(backbone_config):
    return (
        backbone_config.get("use_class_token", True)
        + backbone_config.get("use_distillation_token", False)
        + backbone_config.get("num_register_tokens", 0)
    )


def num_positions(backbone_config):
    """How many tokens have learned positions."""
    scope = backbone_config.get("position_scope", "all")
    if scope == "rotary":
        return 0
    patches = math.prod(position_grid_size(backbone_config))
    return patches + (num_prefix_tokens(backbone_config) if scope == "all" else 0)


def has_two_heads(classifier_config, backbone_config):
    """Whether the classifier has a head for the distillation token too."""
    use_distillation_head = classifier_config.get("use_distillation_head")
    if use_distillation_head is None:
        return bool(backbone_config.get("use_distillation_token"))
    return use_distillation_head


def head_inputs(classifier_config, backbone_config):
    """How many values all heads read of an image."""
    is_double = classifier_config.get("pooling") == "token_and_mean" or has_two_heads(
        classifier_config, backbone_config
    )
    return backbone_config["hidden_dim"] * (2 if is_double else 1)


def _split(config):
    return split_image_shape(config["image_shape"], config.get("data_format"))


def refuse_large(where, most, backbone_config, classifier_config=None):
    """Refuses configs that ask for more memory than their model needs, before it is built.

    Args:
        where: string, the file in errors.
        most: int. How many parameters the weights files can have at most; `None` if they were not
            read.
        backbone_config: dict, the arguments of a `DeiTBackbone`.
        classifier_config: dict, the arguments of a `DeiTImageClassifier`, or `None`.
    """
    parameters = num_parameters(backbone_config)
    if classifier_config is not None:
        inputs = head_inputs(classifier_config, backbone_config)
        parameters += inputs * classifier_config.get("num_classes", 0)
    if parameters > (_MOST_PARAMETERS if most is None else most):
        allowed = f"{_MOST_PARAMETERS:,}" if most is None else f"{most:,}, by the weights' size"
        raise ValueError(
            f"{where} must describe a model of the size of its weights. Restore the file. "
            f"Received: {parameters:,} parameters, where there can be at most {allowed}"
        )


def num_parameters(config):
    """How many parameters a backbone has. Quantized weights have scales beside them."""
    dim, intermediate_dim = config["hidden_dim"], config["intermediate_dim"]
    patch = math.prod(as_pair(config["patch_size"])) * num_channels(config) + 1
    tokens = num_prefix_tokens(config) + num_positions(config)
    attention = 4 * dim * (dim + 1)
    if config.get("use_qk_norm"):
        attention += 4 * (dim // config["num_heads"])
    first = 2 * intermediate_dim if config.get("use_gated_mlp") else intermediate_dim
    mlp = dim * first + first + intermediate_dim * dim + dim
    norms_and_scales = 4 * dim + (2 * dim if config.get("layer_scale_init_value") else 0)
    block = attention + mlp + norms_and_scales
    norms = 2 * (config.get("use_pre_norm", False) + config.get("use_final_norm", True))
    return dim * (patch + tokens + norms) + config["num_layers"] * block
