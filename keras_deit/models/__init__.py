"""Whole models, as functional graphs over the layers."""

from keras_deit.models.block_distillation import BlockDistillation
from keras_deit.models.cosub_trainer import CosubTrainer
from keras_deit.models.deit_backbone import DeiTBackbone
from keras_deit.models.deit_distiller import DeiTDistiller
from keras_deit.models.deit_image_classifier import DeiTImageClassifier

__all__ = [
    "BlockDistillation",
    "CosubTrainer",
    "DeiTBackbone",
    "DeiTDistiller",
    "DeiTImageClassifier",
]
