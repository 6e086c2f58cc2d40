"""What a classifier's head reads: one vector for each image."""

import keras
from keras import ops

from keras_deit.arguments import check_choice
from keras_deit.layers.attention_pooling import AttentionPooling
from keras_deit.models.backbone_arguments import KEEPING_ALL

POOLINGS = ("token", "mean", "token_and_mean", "map")


def pool(features, pooling, use_distillation_head, use_head_norm, backbone, sublayer):
    """Pools the tokens of a backbone.

    Args:
        features: (batch, tokens, hidden_dim).
        pooling: one of `POOLINGS`.
        use_distillation_head: bool. Two heads read tokens, and need all of them.
        use_head_norm: bool. Whether a LayerNormalization follows.
        backbone: the `DeiTBackbone`.
        sublayer: function from the name of a layer to the arguments that it gets from the model.

    Returns:
        `(pooled, attention_pooling, head_norm)`: (batch, hidden_dim), or twice as wide for both
        token and mean; and the two layers, or `None`.
    """
    attention_pooling = head_norm = None
    patches = features[:, backbone.num_prefix_tokens :] if pooling != "token" else None
    if use_distillation_head:
        x = features
    elif pooling == "token":
        x = features[:, 0]
    elif pooling == "map":
        attention_pooling = AttentionPooling(
            backbone.num_heads,
            backbone.intermediate_dim,
            backbone.activation,
            layer_norm_epsilon=backbone.layer_norm_epsilon,
            **sublayer("attention_pooling"),
        )
        x = attention_pooling(patches)
    else:
        x = ops.mean(patches, axis=1)
        if pooling == "token_and_mean":
            x = ops.concatenate([features[:, 0], x], axis=-1)
    if use_head_norm:
        head_norm = keras.layers.LayerNormalization(
            epsilon=backbone.layer_norm_epsilon, **sublayer("head_norm")
        )
        x = head_norm(x)
    return x, attention_pooling, head_norm


def check_pooling(pooling, use_distillation_head, backbone):
    check_choice("pooling", pooling, POOLINGS)
    if use_distillation_head and not backbone.use_distillation_token:
        raise ValueError(
            "`use_distillation_head=True` needs a backbone with `use_distillation_token=True`. "
            f"Received: use_distillation_token={backbone.use_distillation_token!r}"
        )
    if pooling != "token" and use_distillation_head:
        raise ValueError(
            f'`pooling="{pooling}"` needs a single head, but this classifier has two. Use '
            f'`pooling="token"`, or `use_distillation_head=False`. Received: pooling={pooling!r}'
        )
    if "token" in pooling and not backbone.use_class_token:
        raise ValueError(
            f'`pooling="{pooling}"` reads the class token, and the backbone has none. Use '
            '`pooling="mean"` or `pooling="map"`, or a backbone with `use_class_token=True`. '
            f"Received: pooling={pooling!r}"
        )
    token = '`pooling="token"`, or ' if backbone.use_class_token else ""
    for verb, name in (("Merged", "num_merged_tokens"), ("Selected", "keep_rate")):
        value, off = getattr(backbone, name), KEEPING_ALL[name]
        if pooling != "token" and value != off:
            raise ValueError(
                f"{verb} tokens are not the patches. Use {token}a backbone with `{name}={off}`. "
                f"Received: pooling={pooling!r}, {name}={value}"
            )
