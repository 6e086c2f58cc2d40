"""A preset whose weights are a PyTorch model's. They are converted in memory."""

import dataclasses
import functools
from collections.abc import Callable

from keras_deit.presets.architecture import refuse_large
from keras_deit.presets.preset import Preset
from keras_deit.presets.pytorch.tensor_names import rules, to_keras, to_timm_names, without_pooler
from keras_deit.presets.safetensors_file import parse_tensors
from keras_deit.presets.sources import Folder, Repository, need

WEIGHTS = "model.safetensors"


@dataclasses.dataclass
class PyTorchPreset(Preset):
    """Published weights, or a folder or repository of timm or transformers.

    `timm_preset`, `transformers_preset` and `find_preset` translate the configuration and create
    it.
    """

    files: Folder | Repository
    origin: str | None  # handle for model cards; `None` for a local folder
    backbone: dict  # arguments of `DeiTBackbone`
    classifier: dict | None  # arguments of `DeiTImageClassifier`; `None` for a backbone alone
    # Returns the arguments of `DeiTImageConverter`, or `None`. A function, so that preprocessing
    # that cannot be represented is refused only where it is used.
    converter: Callable
    label_names: list | None

    @property
    def has_head(self):
        return self.classifier is not None

    def backbone_config(self, cls):
        refuse_large(self.backbone, self.files.where("config.json"))
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
            if path.startswith("head/") == of_head
        }

    @functools.cached_property
    def _state(self):
        content = need(
            self.files,
            WEIGHTS,
            "Pickles (.bin, .pth) are not opened, because opening one can run code. Save the "
            "weights as safetensors (timm: `save_for_hf(..., safe_serialization=True)`), or "
            "convert the file once with tools/convert_checkpoint.py.",
        )
        where = self.files.where(WEIGHTS)
        tensors = to_timm_names(parse_tensors(content, where))
        if not self.has_head:
            tensors = without_pooler(tensors)
        return to_keras(tensors, rules(self.backbone, self.classifier), where)
