"""What config.json, task.json, preprocessor.json and labels.json of our own format may contain.

The constructors check the rest: which numbers fit each other, and which names exist.
"""

from keras_deit.presets import kinds
from keras_deit.presets.serialized import ACTIVATION, POLICY, QUANTIZATION, TRAINABLE

_MODEL = {
    "name": kinds.or_null(kinds.TEXT),
    "dtype": POLICY,
    "trainable": TRAINABLE,
}
BACKBONE = {
    **_MODEL,
    "quantization_config": QUANTIZATION,
    "image_shape": kinds.list_of(kinds.or_null(kinds.PIXELS), 3, 3),
    "patch_size": kinds.SIZE,
    "num_layers": kinds.LAYERS,
    "num_heads": kinds.WIDTH,
    "hidden_dim": kinds.WIDTH,
    "intermediate_dim": kinds.WIDTH,
    "use_distillation_token": kinds.SWITCH,
    "position_scope": kinds.TEXT,
    "dropout_rate": kinds.RATE,
    "attention_dropout_rate": kinds.RATE,
    "drop_path_rate": kinds.RATE,
    "drop_path_schedule": kinds.TEXT,
    "layer_scale_init_value": kinds.or_null(kinds.NUMBER),
    "layer_norm_epsilon": kinds.NUMBER,
    "num_merged_tokens": kinds.whole(0, 2**20),
    "keep_rate": kinds.RATE,
    "remat": kinds.SWITCH,
    "use_class_token": kinds.SWITCH,
    "num_register_tokens": kinds.whole(0, 2**12),
    "use_qk_norm": kinds.SWITCH,
    "activation": ACTIVATION,
    "use_gated_mlp": kinds.SWITCH,
    "use_pre_norm": kinds.SWITCH,
    "use_final_norm": kinds.SWITCH,
    "patch_dropout_rate": kinds.RATE,
    "position_grid_size": kinds.or_null(kinds.GRID),
    "pad_images": kinds.SWITCH,
    "data_format": kinds.or_null(kinds.TEXT),
}
CLASSIFIER = {
    **_MODEL,
    "quantization_config": QUANTIZATION,
    "num_classes": kinds.CLASSES,
    "pooling": kinds.TEXT,
    "use_distillation_head": kinds.or_null(kinds.SWITCH),
    "use_head_norm": kinds.SWITCH,
    "dropout_rate": kinds.RATE,
    "activation": ACTIVATION,
}
CONVERTER = {
    **_MODEL,
    "image_size": kinds.SIZE,
    "crop_ratio": kinds.number(0.001, 1),
    "interpolation": kinds.TEXT,
    "mean": kinds.STATISTICS,
    "std": kinds.STATISTICS,
    "data_format": kinds.or_null(kinds.TEXT),
    "crop_to_aspect_ratio": kinds.SWITCH,
}
CONVERTER_CLASS = "keras_deit>DeiTImageConverter"
LABELS = kinds.list_of(kinds.TEXT, 1, 10**6)
