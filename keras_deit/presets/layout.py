"""What the configs of a backbone and a classifier say about tokens and heads."""


def layout(config):
    """(grid size, channels, number of prefix tokens) of the arguments of a `DeiTBackbone`."""
    if config.get("data_format") == "channels_first":
        channels, *image_size = config["image_shape"]
    else:
        *image_size, channels = config["image_shape"]
    grid_size = tuple(size // side for size, side in zip(image_size, pair(config["patch_size"])))
    return grid_size, channels, 2 if config.get("use_distillation_token") else 1


def has_two_heads(classifier_config, backbone_config):
    """Whether a `DeiTImageClassifier` of these arguments has a head for the distillation token."""
    use_distillation_head = classifier_config.get("use_distillation_head")
    if use_distillation_head is None:
        return bool(backbone_config.get("use_distillation_token"))
    return use_distillation_head


def pair(size):
    """(height, width) of an int or a pair."""
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)
