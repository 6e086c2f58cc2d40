"""A preset whose weights are a PyTorch model's. They are converted in memory."""

import dataclasses
import functools
import re
from collections.abc import Callable

import numpy as np

from keras_deit.presets.kinds import Kind, check_values, is_text, object_of
from keras_deit.presets.metadata import sha256
from keras_deit.presets.preset import Preset
from keras_deit.presets.pytorch.config_values import required
from keras_deit.presets.pytorch.tensor_names import (
    HEAD_LAYERS,
    rules,
    to_keras,
    to_timm_names,
    without_class_position,
    without_unused,
)
from keras_deit.presets.safetensors_file import parse_tensors
from keras_deit.presets.sources import Folder, Repository, need, read_json
from keras_deit.presets.words import listed

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
_WEIGHT_MAP = object_of(
    Kind(
        "the name of a file like model-00001-of-00002.safetensors",
        lambda value: is_text(value) and re.fullmatch(r"\w[\w.-]*\.safetensors", value) is not None,
    )
)


@dataclasses.dataclass
class PyTorchPreset(Preset):
    """Published weights, or a folder or repository of timm or transformers.

    `timm_preset`, `transformers_preset` and `find_preset` translate the configuration and create
    it.
    """

    files: Folder | Repository
    origin: str | None  # handle for model cards; `None` for a local folder
    backbone: dict  # arguments of `DeiTBackbone`
    # Arguments of `DeiTImageClassifier`, without `num_classes` if there is pooling and no head;
    # `None` for a backbone alone
    classifier: dict | None
    # Returns the arguments of `DeiTImageConverter`, or `None`. A function, so that preprocessing
    # that cannot be represented is refused only where it is used.
    converter: Callable
    label_names: list | None
    # Regular expression of the tensors that the original has no parameters for, such as the bias of
    # a layer without one. They are zeros.
    zeros: str | None = None
    # Whether, of several prefix tokens, the class token alone has a position.
    has_class_position: bool = False
    sha256: str | None = None  # what the weights file must have, if the catalog knows it
    converter_file: str = "config.json"

    @property
    def has_head(self):
        return "num_classes" in (self.classifier or {})

    def backbone_config(self, cls):
        return self.backbone

    def task_config(self, cls, stored_apart):
        return self.classifier

    def preprocessor_config(self):
        converter = self.converter()
        return converter and {**converter, "data_format": "channels_last"}

    def labels(self, num_classes):
        return self.label_names

    def backbone_state(self, build_saved=None):
        return self._take(of_head=False)

    def head_state(self, build_saved=None):
        return self._take(of_head=True)

    def _take(self, of_head):
        """Hands the arrays over: each can be released as soon as the model has it."""
        return {
            path: self._state.pop(path)
            for path in list(self._state)
            if path.startswith(HEAD_LAYERS) == of_head
        }

    @functools.cached_property
    def _state(self):
        where = self.files.where(WEIGHTS)
        # Models without register tokens may keep an empty tensor of them.
        tensors = {name: array for name, array in self._tensors().items() if array.size}
        tensors = to_timm_names(tensors, self.zeros)
        if self.has_class_position:
            tensors = without_class_position(tensors)
        table = rules(self.backbone, self.classifier)
        tensors = without_unused(tensors, table, self.has_head)
        if self.zeros is not None:
            tensors.update(
                {
                    name: np.zeros(shape, "float32")
                    for rule in table
                    for name, shape in zip(rule.names, rule.shapes)
                    if name not in tensors and re.fullmatch(self.zeros, name)
                }
            )
        return to_keras(tensors, table, where)

    def _tensors(self):
        """{tensor name: array} of one file, or of the shards that an index lists."""
        content = self.files.read(WEIGHTS)
        if content is not None:
            self._check_sha256(content)
            return parse_tensors(content, self.files.where(WEIGHTS))
        index = read_json(self.files, INDEX)
        if index is None:
            raise ValueError(
                f"{self.files.where(WEIGHTS)} does not exist. Pickles (.bin, .pth) are not opened, "
                "because opening one can run code. Save the weights as safetensors (timm: "
                "`save_for_hf(..., safe_serialization=True)`), or convert the file once with "
                "tools/convert_checkpoint.py."
            )
        where = self.files.where(INDEX)
        check_values(index, {"weight_map": _WEIGHT_MAP}, where)
        weight_map = required(index, "weight_map", where)
        tensors = {}
        for shard in sorted(set(weight_map.values())):
            advice = f"{where} lists it. Copy or download it again."
            content = need(self.files, shard, advice)
            tensors.update(parse_tensors(content, self.files.where(shard)))
        if set(tensors) != set(weight_map):
            differ = sorted(set(tensors) ^ set(weight_map))
            raise ValueError(
                f"{where} must list the tensors of its files, no more and no fewer. Copy or "
                f"download all of them again. Different: {listed(differ)}"
            )
        return tensors

    def _check_sha256(self, content):
        found = sha256(content)
        if self.sha256 not in (None, found):
            raise ValueError(
                f"{self.files.where(WEIGHTS)} is not the published file: its SHA-256 must be "
                f"{self.sha256}. If the repository has replaced the file and you trust it, load "
                f"'{self.files.handle}' instead. Received: {found}"
            )
