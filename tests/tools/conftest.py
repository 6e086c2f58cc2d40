"""What tools/train.py is tested on."""

import keras
import numpy as np
import pytest

from keras_deit.layers import DeiTImageConverter
from keras_deit.models import DeiTBackbone, DeiTImageClassifier


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with images of two classes, a preset and a teacher."""
    folder = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 3)):
        for label in ("cat", "dog"):
            (folder / "photos" / part / label).mkdir(parents=True)
            for index in range(count):
                image = rng.integers(0, 256, (24, 20 + index, 3))
                keras.utils.save_img(
                    folder / "photos" / part / label / f"{index}.png", image, scale=False
                )
    backbone = DeiTBackbone(
        (32, 32, 3), 16, 2, 2, 16, 32, use_distillation_token=True, data_format="channels_last"
    )
    DeiTImageClassifier(backbone, 5, preprocessor=DeiTImageConverter(32)).save_to_preset(
        folder / "tiny"
    )
    teacher = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)]
    )
    teacher.save(folder / "teacher.keras")
    return folder


def flags(given, output, **overrides):
    common = {
        "data": str(given / "photos"),
        "preset": str(given / "tiny"),
        "output": str(output),
        "recipe": "deit",
        "epochs": 3,
        "batch_size": 4,
        "learning_rate": 0.5,
        "ema_momentum": 0.9,
        "jit": "auto" if keras.backend.backend() == "jax" else "off",
    }
    return {**common, **overrides}
