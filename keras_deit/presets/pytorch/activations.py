"""Activations of PyTorch's models that Keras has no name for, as `get_config` writes ours.

`presets` imports no layer, so they are registered names.
"""


def _registered(name):
    return {
        "module": "builtins",
        "class_name": "function",
        "config": f"keras_deit>{name}",
        "registered_name": "function",
    }


GELU_TANH = _registered("gelu_tanh")
QUICK_GELU = _registered("quick_gelu")
