"""Low-rank adapters (LoRA) in the blocks of a backbone: trained, saved and loaded alone, merged."""

import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_deit.arguments import check_positive_int
from keras_deit.atomic import atomic_file, resolved
from keras_deit.layers.composite import unfreeze, walk
from keras_deit.presets import weights
from keras_deit.presets.mismatches import refuse_mismatches
from keras_deit.presets.safetensors_file import parse_metadata, parse_tensors, write_tensors
from keras_deit.presets.tensor_values import refuse_non_finite
from keras_deit.presets.words import short

_FORMAT = "keras_deit.lora"
_PARTS = ("lora_kernel_a", "lora_kernel_b")


class LoraAdapters:
    """Mixin for models with a backbone: small matrices train in place of the kernels of blocks.

    `outputs = inputs @ (kernel + A @ B) + bias`, with A of shape (inputs, rank) and B of shape
    (rank, outputs). B starts at 0, so the outputs do not change at first.
    """

    def enable_lora(self: Any, rank: int, targets: str | Sequence[str] = ("qkv",)) -> None:
        """Adds low-rank adapters to layers of each block, and freezes the rest of the backbone.

        The adapters train, and the head of a classifier. Call this before `compile`.

        `save` and `save_to_preset` add the adapters to the kernels, so the files have a plain
        model. `save_lora_weights` saves the adapters alone.

        Args:
            rank: int, 1 or more: the number of columns of A. Each adapted kernel (inputs, outputs)
                gets `rank * (inputs + outputs)` parameters.
            targets: name or names of the layers to adapt: `"qkv"`, `"attention/projection"`,
                `"mlp/intermediate"`, `"mlp/projection"`. `"projection"` is both of that name.
                Defaults to `("qkv",)`: queries, keys and values.

        Raises:
            ValueError: if an argument is out of range, a block has no layer of that name, or LoRA
                is enabled already.

        Example:

        >>> classifier = DeiTImageClassifier.from_preset("deit_nano_distilled_patch4_32_digits")
        >>> classifier.enable_lora(rank=4)
        >>> classifier.backbone.blocks[0].attention.qkv.lora_kernel_a.shape
        (64, 4)

        Reference: [Hu et al., 2021](https://arxiv.org/abs/2106.09685).
        """
        rank = check_positive_int("rank", rank)
        layers = _targeted(self._get_backbone(), targets)
        self._enable(rank, layers)

    def _enable(self, rank, layers):
        adapted = _adapted(self._get_backbone())
        if adapted:
            raise ValueError(
                f"LoRA is enabled already, with rank {_rank(adapted)} in {_targets(adapted)}. Use "
                "another copy of the model, or `merge_lora()`, which returns one without LoRA."
            )
        backbone = self._get_backbone()
        if not self.trainable:
            self.trainable = True
        unfreeze(backbone)  # a frozen layer would not train its adapter
        for variable in backbone.weights:
            variable.trainable = False
        for layer in layers.values():
            layer.enable_lora(rank)
        for model in (self, backbone):  # compiled programs do not have the adapters
            model.train_function = model.test_function = model.predict_function = None

    def save_lora_weights(self: Any, filepath: str | os.PathLike) -> None:
        """Saves the adapters and, of a classifier, the head, as a safetensors file.

        The file is small, and belongs to the weights that the backbone had before the training.

        Args:
            filepath: path of the file. An existing file is replaced once the new one is complete.

        Raises:
            ValueError: if LoRA is not enabled, adapters have different ranks, or a weight is NaN or
                infinite.
            OSError: if the disk is full or cannot be written. An existing file stays.
        """
        adapted = _adapted(self._get_backbone())
        if not adapted:
            raise ValueError(
                "There are no adapters to save. Use `enable_lora(rank)` before the training, or "
                "`save_to_preset` to save all weights."
            )
        metadata = {
            "format": _FORMAT,
            "rank": str(_rank(adapted)),
            "targets": ",".join(_targets(adapted)),
        }
        variables = {**_variables(adapted), **self._head_variables()}
        state = {name: _array(variable) for name, variable in variables.items()}
        refuse_non_finite(state, "the model")
        with atomic_file(resolved(filepath)) as file:
            write_tensors(file, state, metadata)

    def load_lora_weights(self: Any, filepath: str | os.PathLike) -> None:
        """Loads what `save_lora_weights` saved, in place of the model's own adapters and head.

        A model without LoRA gets it, with the rank and targets of the file.

        Args:
            filepath: path of the file.

        Raises:
            ValueError: if there is no such file, it has no adapters, they have another rank or
                other targets than those of the model, or its tensors do not fit the model.
        """
        path = resolved(filepath)
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist or is not a file. `save_lora_weights` writes such files."
            )
        content = path.read_bytes()
        state = parse_tensors(content, path)
        rank, targets = _settings(parse_metadata(content), path)
        backbone = self._get_backbone()
        adapted = _adapted(backbone)
        if adapted and (_rank(adapted), _targets(adapted)) != (rank, targets):
            raise ValueError(
                f"The adapters of {path} have rank {rank} in {targets}, and those of the model "
                f"have rank {_rank(adapted)} in {_targets(adapted)}. Load them into a model "
                "without LoRA, which then gets what the file has."
            )
        layers = adapted or _targeted(backbone, targets)
        head = self._head_variables()
        refuse_mismatches(
            {name: tuple(array.shape) for name, array in state.items()},
            {
                **_shapes(layers, rank),
                **{name: tuple(variable.shape) for name, variable in head.items()},
            },
            f"The adapters of {path} do not fit the model. They belong to a model of the same "
            "architecture and the same `num_classes`; those of a backbone have no head.",
        )
        refuse_non_finite(state, path)
        variables = {**(_variables(adapted) if adapted else {}), **head}
        weights.refuse_other_numbers({name: state[name] for name in variables}, variables, path)
        if not adapted:
            self._enable(rank, layers)
        for name, variable in {**_variables(layers), **head}.items():
            variable.assign(state[name])

    def merge_lora(self: Any) -> Any:
        """Returns a copy of the model without LoRA: the kernels contain the adapters.

        The copy computes the same with fewer operations. Of a model in int8, the sums are rounded
        to int8 again. All its weights train, but those in int8. `export` uses it.

        Raises:
            ValueError: if LoRA is not enabled.
        """
        if not self._has_lora():
            raise ValueError(
                "There are no adapters to merge. Use `enable_lora(rank)` before the training."
            )
        config = self.get_config()
        if "preprocessor" in config:
            config["preprocessor"] = self.preprocessor
        twin = type(self).from_config(config)
        for own, new in zip(self._weighted_models(), twin._weighted_models()):
            weights.assign(weights.state_of(own), new, "model with LoRA")
        twin._get_backbone()._origin = self._get_backbone()._origin
        return twin

    def export(self, *args, **kwargs):
        if self._has_lora():
            return self.merge_lora().export(*args, **kwargs)
        return super().export(*args, **kwargs)

    def _has_lora(self):
        return any(
            getattr(layer, "lora_enabled", False) for layer in weights.leaf_layers(self.layers)
        )

    def _head_variables(self):
        """{path: variable} of what trains beside the adapters."""
        return {}

    def _weighted_models(self):
        """Models that together have all weights."""
        return [self._get_backbone()]


def _dense_layers(backbone):
    """{"block_0/attention/qkv": layer, ...}"""
    return {
        f"{block.name}/{path}": layer
        for block in backbone.blocks
        for path, layer, _ in walk(block.sublayers, block)
        if isinstance(layer, keras.layers.Dense)
    }


def _without_block(path):
    return path.partition("/")[2]


def _targeted(backbone, targets):
    """The layers with one of these names, such as `"qkv"` or `"mlp/projection"`."""
    names = (targets,) if isinstance(targets, str) else targets
    known = list(dict.fromkeys(map(_without_block, _dense_layers(backbone))))
    wrong = [
        name
        for name in (names if isinstance(names, (tuple, list)) else [names])
        if not isinstance(name, str) or not any(_names(name, path) for path in known)
    ]
    if wrong or not names:
        raise ValueError(
            f"`targets` must be one or several of {', '.join(map(repr, known))}. "
            f"Received: targets={short(targets)}"
        )
    return {
        path: layer
        for path, layer in _dense_layers(backbone).items()
        if any(_names(name, _without_block(path)) for name in names)
    }


def _names(name, path):
    return path == name or path.endswith(f"/{name}")


def _adapted(backbone):
    return {
        path: layer
        for path, layer in _dense_layers(backbone).items()
        if getattr(layer, "lora_enabled", False)
    }


def _rank(layers):
    ranks = sorted({layer.lora_rank for layer in layers.values()})
    if len(ranks) > 1:
        raise ValueError(
            "All adapters must have the same rank. Use the model's `enable_lora`, and not that of "
            f"single layers. Received: ranks {', '.join(map(str, ranks))}"
        )
    return ranks[0]


def _targets(layers):
    return list(dict.fromkeys(map(_without_block, layers)))


def _variables(layers):
    return {
        f"{path}/{part}": getattr(layer, part) for path, layer in layers.items() for part in _PARTS
    }


def _shapes(layers, rank):
    """{name: shape} of the variables of `enable_lora(rank)`."""
    found = {}
    for path, layer in layers.items():
        inputs, outputs = layer.input_spec.axes[-1], layer.units
        found |= {f"{path}/{_PARTS[0]}": (inputs, rank), f"{path}/{_PARTS[1]}": (rank, outputs)}
    return found


def _settings(metadata, path):
    """(rank, targets) of a file's metadata."""
    rank, targets = metadata.get("rank", ""), metadata.get("targets", "")
    if (
        metadata.get("format") != _FORMAT
        or not rank.isdecimal()
        or not 0 < int(rank) < 10**9
        or not targets
    ):
        raise ValueError(
            f"{path} has no adapters of keras_deit. `save_lora_weights` writes such files. "
            f"Received: metadata {short(metadata)}"
        )
    return int(rank), targets.split(",")


def _array(variable):
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.stop_gradient(variable)))
