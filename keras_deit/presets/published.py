"""A published model as a preset: the original weights from the Hugging Face Hub, converted in memory."""

import functools

from keras_deit.presets import weights
from keras_deit.presets.hub import download
from keras_deit.presets.tensor_names import rules, to_keras, to_timm_names


class PublishedPreset:
    """A row of the catalog, read as `PresetDirectory` is."""

    def __init__(self, architecture):
        self._architecture = architecture
        self._source = f"preset {architecture.name!r} ({architecture.timm_repository})"

    def backbone_config(self, cls):
        return self._architecture.backbone_config

    def task_config(self, cls, given_apart):
        return self._architecture.classifier_config

    def preprocessor_config(self):
        return {
            "module": None,
            "class_name": "DeiTImageConverter",
            "registered_name": "keras_deit>DeiTImageConverter",
            "config": self._architecture.converter_config,
        }

    def labels(self, num_classes):
        return None

    def load_backbone(self, model):
        weights.assign(self.backbone_state(), model, self._source)

    def load_head(self, model):
        weights.assign(self._part(of_head=True), model, self._source)

    def backbone_state(self, build_saved=None):
        """{variable path: array}."""
        return self._part(of_head=False)

    def _part(self, of_head):
        return {path: array for path, array in self._state.items() if path.startswith("head/") == of_head}

    @functools.cached_property
    def _state(self):
        from safetensors.numpy import load_file

        tensors = to_timm_names(load_file(download(self._architecture.timm_repository, "model.safetensors")))
        head = "distilled" if self._architecture.distilled else "plain"
        return to_keras(tensors, rules(self._architecture.backbone_config, head), self._source)
