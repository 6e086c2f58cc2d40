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


def num_channels(backbone_config):
    _, channels = _split(backbone_config)
    return channels


def has_two_heads(classifier_config, backbone_config):
    """Whether the classifier has a head for the distillation token too."""
    use_distillation_head = classifier_config.get("use_distillation_head")
    if use_distillation_head is None:
        return bool(backbone_config.get("use_distillation_token"))
    return use_distillation_head


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
        heads = 2 if has_two_heads(classifier_config, backbone_config) else 1
        parameters += heads * classifier_config["num_classes"] * backbone_config["hidden_dim"]
    if parameters > (_MOST_PARAMETERS if most is None else most):
        allowed = f"{_MOST_PARAMETERS:,}" if most is None else f"{most:,}, by the weights' size"
        raise ValueError(
            f"{where} must describe a model of the size of its weights. Restore the file. "
            f"Received: {parameters:,} parameters, where there can be at most {allowed}"
        )


def num_parameters(config):
    """How many parameters a backbone has. Quantized weights have scales beside them."""
    dim, intermediate_dim = config["hidden_dim"], config["intermediate_dim"]
    prefix_tokens = 2 if config.get("use_distillation_token") else 1
    prefix_positions = prefix_tokens if config.get("position_scope", "all") == "all" else 0
    patch = math.prod(as_pair(config["patch_size"])) * num_channels(config) + 1
    tokens = prefix_tokens + prefix_positions + math.prod(position_grid_size(config))
    attention = 4 * dim * (dim + 1)
    mlp = 2 * dim * intermediate_dim + intermediate_dim + dim
    norms_and_scales = 4 * dim + (2 * dim if config.get("layer_scale_init_value") else 0)
    block = attention + mlp + norms_and_scales
    return dim * (patch + tokens + 2) + config["num_layers"] * block
