"""A published model as a preset."""


class PublishedPreset:
    """A row of the catalog, read as `PresetDirectory` is."""

    def __init__(self, architecture):
        self._architecture = architecture

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
        self._refuse()

    def load_head(self, model):
        self._refuse()

    def _refuse(self):
        raise ValueError(
            f"The trained weights of {self._architecture.name!r} cannot be loaded yet: this version of keras_deit has its architecture "
            "only. Give `load_weights=False` for a model with random weights."
        )
