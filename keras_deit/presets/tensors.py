"""Tensors of PyTorch checkpoints as NumPy arrays, under timm's names."""

from absl import logging

from keras_deit.presets.tensor_names import to_timm_names


def read_tensors(path):
    """{timm's name: array} of a safetensors file in the layout of timm, facebookresearch or transformers.

    The pooler of transformers' models without a head is left out, which a log line says: it follows the last LayerNorm, and no
    part of DeiT is like it.

    Raises:
        ValueError: not a safetensors file, or one that was cut short.
    """
    # On demand: `import keras_deit` should not pay for it.
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = to_timm_names(load_file(path, backend="pread"))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}. Copy or download it again.") from error
    pooler = [name for name in tensors if name.startswith("pooler.")]
    if pooler:
        logging.info("Left out of %s, as DeiT has none: %s", path, ", ".join(pooler))
    return {name: array for name, array in tensors.items() if name not in pooler}
