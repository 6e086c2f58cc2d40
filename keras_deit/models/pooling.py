"""What a classifier's head reads: one vector for each image."""

from keras import ops

from keras_deit.arguments import check_choice
from keras_deit.layers.attention_pooling import AttentionPooling

POOLINGS = ("token", "mean", "token_and_mean", "map")


def pool(features, pooling, use_distillation_head, backbone, sublayer):
    """Pools the tokens of a backbone.

    Args:
        features: (batch, tokens, hidden_dim).
        pooling: one of `POOLINGS`.
        use_distillation_head: bool. Two heads read tokens, and need all of them.
        backbone: the `DeiTBackbone`.
        sublayer: function from the name of a layer to the arguments that it gets from the model.

    Returns:
        `(pooled, attention_pooling)`: (batch, hidden_dim), or twice as wide for both token and
        mean; and the layer that has weights, or `None`.
    """
    if use_distillation_head:
        return features, None
    if pooling == "token":
        return features[:, 0], None
    patches = features[:, backbone.num_prefix_tokens :]
    if pooling == "map":
        layer = AttentionPooling(
            backbone.num_heads,
            backbone.intermediate_dim,
            backbone.activation,
            layer_norm_epsilon=backbone.layer_norm_epsilon,
            **sublayer("attention_pooling"),
        )
        return layer(patches), layer
    mean = ops.mean(patches, axis=1)
    if pooling == "mean":
        return mean, None
    return ops.concatenate([features[:, 0], mean], axis=-1), None


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
    if pooling != "token" and backbone.num_merged_tokens:
        raise ValueError(
            'Merged tokens are not the patches. Use `pooling="token"`, or a backbone with '
            f"`num_merged_tokens=0`. Received: pooling={pooling!r}, "
            f"num_merged_tokens={backbone.num_merged_tokens}"
        )
