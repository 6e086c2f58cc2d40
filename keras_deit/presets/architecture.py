"""What the arguments of a backbone and a classifier imply about the shapes of their weights."""

from keras_deit.arguments import as_pair
from keras_deit.data_formats import split_image_shape


def grid_size(backbone_config):
    """(rows, columns) of patches."""
    image_size, _ = _split(backbone_config)
    patch_size = as_pair(backbone_config["patch_size"])
    return tuple(size // patch for size, patch in zip(image_size, patch_size))


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
