"""TensorFlow is one backend of three: on the others the package does without it, and says what it
cannot do then.
"""

import os
import subprocess
import sys

import keras
import pytest

pytestmark = [pytest.mark.backend, pytest.mark.process]

TOUR = """
import keras_deit
import keras
import numpy as np
from keras_deit.models import DeiTBackbone, DeiTDistiller, DeiTImageClassifier

name = "deit_nano_distilled_patch4_32_digits"
images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype("uint8")
labels = np.array([0, 1, 2, 0])
trained = DeiTImageClassifier.from_preset(name)
logits = trained.predict(images, verbose=0)

loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
classifier = DeiTImageClassifier.from_preset(name, num_classes=3, num_layers=1, load_weights=False)
classifier.compile("sgd", loss, metrics=["accuracy"])
classifier.fit(images, labels, validation_split=0.5, verbose=0)
classifier.evaluate(images, labels, verbose=0)
distiller = DeiTDistiller(classifier, DeiTImageClassifier.from_preset(name, num_classes=3, num_layers=1, load_weights=False))
distiller.compile("sgd", loss)
distiller.fit(images, labels, verbose=0)

trained.save_to_preset("preset")
trained.save("model.keras")
for loaded in (DeiTImageClassifier.from_preset("preset"), keras.saving.load_model("model.keras")):
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), logits)

found = keras_deit.visualization.attention_model(trained).predict(trained.preprocessor(images), verbose=0)
rollouts = keras_deit.visualization.attention_rollout(found["attention_scores"], 2, (8, 8))
keras_deit.visualization.plot_rollouts(images, rollouts, ["a", "b", "c", "d"]).savefig("rollouts.png")
recipe = keras_deit.training.RECIPES["deit"]
print("toured")
"""


# As where it is not installed: nobody finds it.
HIDE = """
import sys

class WithoutTensorFlow:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *args):
        return None if name.partition(".")[0] == "tensorflow" else self.finder.find_spec(name, *args)

sys.meta_path[:] = map(WithoutTensorFlow, sys.meta_path)
"""


def run(script, folder):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HIDE + script]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, check=False
    )


@pytest.mark.parametrize(
    "script",
    [
        TOUR,
        "import keras_deit\nimport keras_deit.training.image_folder",
    ],
    ids=["tour", "folders"],
)
def test_without_tensorflow(script, tmp_path):
    result = run(script, tmp_path)
    if keras.backend.backend() == "tensorflow":
        assert "Keras has no backend. Run `pip install tensorflow`" in result.stderr
    elif script is TOUR:
        assert result.returncode == 0, result.stderr
        assert result.stdout.endswith("toured\n")
    else:
        assert (
            "The image pipelines of `keras_deit.training` use tf.data on every Keras backend: `pip "
            "install tensorflow`" in result.stderr
        )
