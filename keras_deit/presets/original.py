"""Weights in the layout of the original PyTorch models, as a preset: converted in memory, nothing
is written.
"""

import dataclasses
import functools
from collections.abc import Callable

from keras_deit.presets.files import Folder, Repository, need
from keras_deit.presets.safetensors_file import read_tensors
from keras_deit.presets.tensor_names import rules, to_keras, to_timm_names, without_pooler

WEIGHTS = "model.safetensors"


@dataclasses.dataclass
class OriginalPreset:
    """Read as `PresetDirectory` is. What it holds was found in the catalog, or in the config of
    timm or transformers.
    """

    files: Folder | Repository
    # The handle, for model cards; `None` for a folder, whose path concerns nobody else
    origin: str | None
    backbone: dict  # arguments of DeiTBackbone
    classifier: dict | None  # arguments of DeiTImageClassifier, `None` for a backbone alone
    # () -> arguments of DeiTImageConverter, or `None`; read and checked only where it is wanted
    converter: Callable
    label_names: list | None

    @property
    def has_head(self):
        return self.classifier is not None

    def backbone_config(self, cls):
        return self.backbone

    def task_config(self, cls, given_apart):
        return self.classifier

    def preprocessor_config(self):
        converter = self.converter()
        if converter is None:
            return None
        return {
            "module": None,
            "class_name": "DeiTImageConverter",
            "registered_name": "keras_deit>DeiTImageConverter",
            "config": {**converter, "data_format": "channels_last"},
        }

    def labels(self, num_classes):
        return self.label_names

    def backbone_state(self, build_saved=None):
        """{variable path: array}, once."""
        return self._take(of_head=False)

    def head_state(self, build_saved=None):
        return self._take(of_head=True)

    def _take(self, of_head):
        return {
            path: self._state.pop(path)
            for path in list(self._state)
            if path.startswith("head/") == of_head
        }

    @property
    def _source(self):
        return self.files.where(WEIGHTS)

    @functools.cached_property
    def _state(self):
        path = need(
            self.files,
            WEIGHTS,
            "Weights in pickles (.bin, .pth) are not opened here. Save them as safetensors (timm's "
            "`save_for_hf` takes "
            "`safe_serialization=True`), or convert them once, with tools/convert_checkpoint.py.",
        )
        tensors = to_timm_names(read_tensors(path))
        if not self.has_head:
            tensors = without_pooler(tensors)
        return to_keras(tensors, rules(self.backbone, self.classifier), self._source)
