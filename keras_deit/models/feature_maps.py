"""Features of a backbone's blocks, as tokens or as maps of the image."""

import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_deit.arguments import check_bool
from keras_deit.layers.naming import unique_name
from keras_deit.layers.tokens_to_map import TokensToMap
from keras_deit.models.backbone_arguments import KEEPING_ALL


class FeatureMaps:
    """Mixin of `DeiTBackbone`."""

    def features(
        self: Any,  # a `DeiTBackbone`
        images: Any,
        blocks: Sequence[int] | None = None,
        norm: bool = True,
        reshape: bool = True,
    ) -> dict[str, Any]:
        """Returns the features after some blocks. Computes nothing after the last of them.

        Args:
            images: images as the backbone takes them, or a symbolic tensor, to build a model on.
            blocks: indices of blocks, such as `(3, 6, 9, 11)`. Negative ones count from the end.
                Defaults to `None`, all blocks.
            norm: bool. Whether to apply the backbone's last LayerNorm, if it has one, to the
                features of each block, as it does to its output. Defaults to `True`.
            reshape: bool. `True` returns maps of the patch tokens, `False` returns all tokens.
                Defaults to `True`.

        Returns:
            `{"block_3": features, ...}`, in the order of `blocks`. With `reshape`, features are
            (batch, rows, columns, hidden_dim), or (batch, hidden_dim, rows, columns) with
            `data_format="channels_first"`; otherwise (batch, tokens, hidden_dim), prefix tokens
            first.

        Raises:
            ValueError: if `blocks` is empty, repeats a block or has one that does not exist; or if
                the backbone merges, selects or drops tokens, which leaves no map to reshape to.

        Equal to `forward_intermediates(indices=blocks, norm=norm)` of timm and
        `get_intermediate_layers` of DINOv2. The first call with new arguments builds a small
        graph; `torch.compile` cannot, so call it once before.
        """
        self._check_inputs(images)
        indices = self._block_indices(blocks)
        norm, reshape = check_bool("norm", norm), check_bool("reshape", reshape)
        if reshape and self._without_places:
            name, value = self._without_places
            raise ValueError(
                "A map needs one token for each patch. Use `reshape=False`, or a backbone with "
                f"`{name}={KEEPING_ALL[name]}`. Received: reshape={reshape}, {name}={value}"
            )
        model = self._feature_models.get((indices, norm, reshape))
        if model is None:
            model = self._build_feature_model(indices, norm, reshape)
            self._feature_models[indices, norm, reshape] = model
        # On the backbone's own input, its own blocks; on another, one nested model.
        found = model.output if images is self.input else model(images)
        names = [self.blocks[index].name for index in indices]
        return {name: found[name] for name in names}  # On PyTorch, Keras sorts them

    @functools.cached_property
    def pyramid_outputs(self):
        """The patch tokens of the output as a feature map, as a symbolic tensor.

        `{"P4": (batch, rows, columns, hidden_dim)}`, or (batch, hidden_dim, rows, columns) with
        `data_format="channels_first"`. The level is the base-2 logarithm of the patch size,
        rounded, such as `"P4"` for patches of 16 or 14 pixels and `"P2"` for 4. A backbone that
        merges, selects or drops tokens has no feature
        map.
        """
        if self._without_places:
            return _NoFeatureMaps(*self._without_places)
        level = round(math.log2(math.prod(self.patch_size)) / 2)
        return {f"P{level}": self._as_map(self.output)}

    @property
    def _without_places(self):
        """(name, value) of the argument that leaves patches without a place, or `None`."""
        for name, off in KEEPING_ALL.items():
            if getattr(self, name) != off:
                return name, getattr(self, name)
        return None

    # A property that Keras does not track: these models have no weights of their own.
    @functools.cached_property
    def _feature_models(self):
        """{(block indices, norm, reshape): model}. Built once, so that calls build no graph."""
        return {}

    def _build_feature_model(self, indices, norm, reshape):
        outputs = {}
        for index in indices:
            x = self._states[index + 1][0]
            if norm:
                x = self.output if index == len(self.blocks) - 1 else self._normalized(x)
            outputs[self.blocks[index].name] = self._as_map(x) if reshape else x
        return keras.Model(self.input, outputs, name=unique_name("features"))

    def _as_map(self, tokens):
        """The patch tokens in their places in the image."""
        if None in self.grid_size:
            return TokensToMap(self.num_prefix_tokens, self.data_format)(tokens, self._patches)
        x = tokens[:, self.num_prefix_tokens :]
        x = ops.reshape(x, (-1, *self.grid_size, self.hidden_dim))
        return ops.transpose(x, (0, 3, 1, 2)) if self.data_format == "channels_first" else x

    def _block_indices(self, blocks):
        """Indices from 0."""
        depth = len(self.blocks)
        indices = range(depth) if blocks is None else blocks
        are_indices = isinstance(indices, (tuple, list, range)) and all(
            isinstance(index, numbers.Integral)
            and not isinstance(index, bool)
            and -depth <= index < depth
            for index in indices
        )
        found = tuple(int(index) % depth for index in indices) if are_indices else ()
        if not found or len(set(found)) < len(found):
            raise ValueError(
                f"`blocks` must be a tuple of different block indices from 0 to {depth - 1}, or "
                f"from {-depth} to -1 to count from the end. Received: blocks={blocks!r}"
            )
        return found


class _NoFeatureMaps(dict):
    """The feature maps of a backbone without: empty, with an error for each level.

    The property itself must not raise, because PyTorch's tracer reads it when it exports a model.
    """

    def __init__(self, name, value):
        super().__init__()
        self.name, self.value = name, value

    def __missing__(self, level):
        raise ValueError(
            "`pyramid_outputs` needs one token for each patch, so use "
            f"`{self.name}={KEEPING_ALL[self.name]}`. "
            f"Received: {self.name}={self.value}"
        )
