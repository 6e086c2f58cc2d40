"""The real weights, from the Hugging Face Hub. Off by default: `pytest -m network tests/network`
downloads 1.5 GB.

What is known about them from elsewhere: two cats asleep (image 39769 of COCO val2017, on which
transformers' documentation has `facebook/deit-base-distilled-patch16-224` answer "tabby, tabby
cat"), and what the same checkpoint makes of an input of 0.5 (Bumblebee,
test/bumblebee/vision/deit_test.exs), there with an epsilon of 1e-12.
"""

import os
import subprocess
import sys

import pytest

from keras_deit.presets.catalog import ARCHITECTURES

pytestmark = pytest.mark.network

CATS = """
import sys
import keras
from keras_deit.models import DeiTImageClassifier

file = keras.utils.get_file(origin="http://images.cocodataset.org/val2017/000000039769.jpg")
photo = keras.utils.img_to_array(keras.utils.load_img(file))
classifier = DeiTImageClassifier.from_preset(sys.argv[1])
print(classifier.decode_predictions(classifier.predict(photo[None], verbose=0), top=1)[0][0][0])
"""

CONSTANT = """
import sys
import keras
from keras_deit.models import DeiTImageClassifier

classifier = DeiTImageClassifier.from_preset(sys.argv[1])
images = keras.ops.full((1, 224, 224, 3), 0.5)
tokens, logits = classifier.backbone(images), classifier(images)
print(*keras.ops.convert_to_numpy(tokens)[0, 0, :3], *keras.ops.convert_to_numpy(logits)[0, :3])
"""


def run(script, handle):
    """The last line that a script prints. It runs without the loopback hub of the other tests."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment["PYTHONPATH"] = os.getcwd()
    result = subprocess.run(
        [sys.executable, "-c", script, handle],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "name", [name for name, row in ARCHITECTURES.items() if row.version == "deit"]
)
def test_the_eight_see_cats(name):
    answer = run(CATS, name)
    assert answer in ("tabby, tabby cat", "tiger cat", "Egyptian cat")
    if name == "deit_base_distilled_patch16_224":
        assert answer == "tabby, tabby cat"


@pytest.mark.parametrize(
    "handle", ["deit_base_distilled_patch16_224", "hf://facebook/deit-base-distilled-patch16-224"]
)
def test_numbers_that_others_published(handle):
    found = [float(value) for value in run(CONSTANT, handle).split()]
    assert found == pytest.approx([-0.0738, -0.2792, -0.0235, -0.7490, 0.7397, 0.6383], abs=1e-3)
