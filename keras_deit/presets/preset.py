"""What every kind of preset offers to `from_preset`."""

import abc
from typing import Any


class Preset(abc.ABC):
    """A trained model on disk or on the hub: its configurations, labels and weights.

    Attributes:
        files: `Folder` or `Repository`.
        origin: handle of the published weights, for the model card, or `None`.
        most_parameters: how many parameters the weights files can have at most, or `None` if they
            were not read.
        backbone_file, head_file, converter_file: names of the files with the arguments, for errors.
    """

    files: Any
    origin: str | None
    most_parameters: int | None = None
    backbone_file: str = "config.json"
    head_file: str = "config.json"
    converter_file: str = "config.json"

    @property
    @abc.abstractmethod
    def has_head(self):
        """Whether this is a classifier rather than a backbone alone."""

    @abc.abstractmethod
    def backbone_config(self, cls):
        """The arguments of the backbone, a `cls`."""

    @abc.abstractmethod
    def task_config(self, cls, stored_apart):
        """The classifier's own arguments, or `None` for a backbone alone.

        Args:
            cls: class of the classifier.
            stored_apart: names of arguments of `cls` that the preset keeps elsewhere.
        """

    @abc.abstractmethod
    def preprocessor_config(self):
        """The arguments of the `DeiTImageConverter`, or `None` for no preprocessor."""

    @abc.abstractmethod
    def labels(self, num_classes):
        """The class names, or `None`."""

    @abc.abstractmethod
    def backbone_state(self, build_saved):
        """{variable path: array} of the backbone.

        Args:
            build_saved: function without arguments that builds the backbone as it was saved, for
                files that only Keras can read.
        """

    @abc.abstractmethod
    def head_state(self, build_saved):
        """{variable path: array} of the head; see `backbone_state`."""
