"""What a vision transformer is made of."""

from keras_deit.layers.attention_pooling import AttentionPooling
from keras_deit.layers.deit_image_converter import DeiTImageConverter
from keras_deit.layers.distillation_head import DistillationHead
from keras_deit.layers.drop_path import DropPath
from keras_deit.layers.hmlp_stem import HMLPStem
from keras_deit.layers.kernels import gelu, gelu_tanh, quick_gelu, target_platform
from keras_deit.layers.layer_scale import LayerScale
from keras_deit.layers.merging_transformer_block import MergingTransformerBlock
from keras_deit.layers.mlp import MLP
from keras_deit.layers.multi_head_self_attention import MultiHeadSelfAttention
from keras_deit.layers.parallel_transformer_block import ParallelTransformerBlock
from keras_deit.layers.patch_dropout import PatchDropout
from keras_deit.layers.patch_embedding import PatchEmbedding
from keras_deit.layers.rotary_position_embedding import RotaryPositionEmbedding
from keras_deit.layers.selecting_transformer_block import SelectingTransformerBlock
from keras_deit.layers.simple_feature_pyramid import SimpleFeaturePyramid
from keras_deit.layers.token_merging import TokenMerging
from keras_deit.layers.token_position_embedding import TokenPositionEmbedding
from keras_deit.layers.token_selection import TokenSelection
from keras_deit.layers.transformer_block import TransformerBlock

__all__ = [
    "MLP",
    "AttentionPooling",
    "DeiTImageConverter",
    "DistillationHead",
    "DropPath",
    "HMLPStem",
    "LayerScale",
    "MergingTransformerBlock",
    "MultiHeadSelfAttention",
    "ParallelTransformerBlock",
    "PatchDropout",
    "PatchEmbedding",
    "RotaryPositionEmbedding",
    "SelectingTransformerBlock",
    "SimpleFeaturePyramid",
    "TokenMerging",
    "TokenPositionEmbedding",
    "TokenSelection",
    "TransformerBlock",
    "gelu",
    "gelu_tanh",
    "quick_gelu",
    "target_platform",
]
