"""What precedes the first block of a backbone."""

import keras

from keras_deit.layers.multi_head_self_attention import check_heads_divide
from keras_deit.layers.patch_dropout import PatchDropout
from keras_deit.layers.patch_embedding import PatchEmbedding
from keras_deit.layers.rotary_position_embedding import RotaryPositionEmbedding
from keras_deit.layers.token_position_embedding import TokenPositionEmbedding


class Embedding:
    """The layers from images to the tokens that the first block gets.

    Args:
        hidden_dim, patch_size, data_format, pad_images: see `PatchEmbedding`.
        grid_size: (rows, columns) of the patches, `None` where they are not known.
        position_grid_size: (rows, columns) of the learned positions, or `None` without any.
        num_prefix_tokens, dropout_rate: see `TokenPositionEmbedding`.
        position_scope: as in `DeiTBackbone`.
        patch_dropout_rate: float, 0 for no `PatchDropout`.
        use_pre_norm: bool.
        layer_norm_epsilon: float, for `use_pre_norm`.
        sublayer: function from the name of a layer to the arguments that it gets from the model.
    """

    def __init__(
        self,
        *,
        hidden_dim,
        patch_size,
        data_format,
        pad_images,
        grid_size,
        position_grid_size,
        num_prefix_tokens,
        dropout_rate,
        position_scope,
        patch_dropout_rate,
        use_pre_norm,
        layer_norm_epsilon,
        sublayer,
    ):
        self.patch_embedding = PatchEmbedding(
            hidden_dim,
            patch_size,
            data_format=data_format,
            # Rotary positions, and learned ones of another grid, need the rows and columns.
            flatten=position_grid_size == grid_size,
            pad_images=pad_images,
            **sublayer("patch_embedding"),
        )
        self.token_position_embedding = TokenPositionEmbedding(
            num_prefix_tokens,
            position_grid_size or (1, 1),
            position_scope="none" if position_scope == "rotary" else position_scope,
            dropout_rate=dropout_rate,
            **sublayer("token_position_embedding"),
        )
        self.patch_dropout = self.pre_norm = None
        if patch_dropout_rate:
            self.patch_dropout = PatchDropout(
                patch_dropout_rate, num_prefix_tokens, **_plain(sublayer("patch_dropout"))
            )
        if use_pre_norm:
            self.pre_norm = keras.layers.LayerNormalization(
                epsilon=layer_norm_epsilon, **sublayer("pre_norm")
            )

    def tokens(self, patches):
        """The tokens of the output of `patch_embedding`."""
        x = self.token_position_embedding(patches)
        for layer in (self.patch_dropout, self.pre_norm):
            x = x if layer is None else layer(x)
        return x

    def rotation(self, patches, num_heads, sublayer):
        """The `rotation` of every attention."""
        hidden_dim = self.patch_embedding.hidden_dim
        check_heads_divide(num_heads, hidden_dim)
        if hidden_dim // num_heads % 4:
            raise ValueError(
                '`position_scope="rotary"` needs heads of a multiple of 4 values. Change '
                f"`hidden_dim` or `num_heads`. Received: hidden_dim={hidden_dim}, "
                f"num_heads={num_heads}, so heads of {hidden_dim // num_heads}"
            )
        return RotaryPositionEmbedding(
            hidden_dim // num_heads,
            self.token_position_embedding.num_prefix_tokens,
            **_plain(sublayer("rotary_position_embedding")),
        )(patches)


def _plain(arguments):
    """Without what a layer that has no sub-layers does not take."""
    return {name: arguments[name] for name in ("name", "dtype")}
