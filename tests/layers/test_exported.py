"""Layers that no backbone has, exported and run elsewhere. tests/tools/test_export_model.py has the
models.
"""

import keras
import numpy as np
import pytest

from tests.conftest import BACKEND
from tests.helpers import numpy, randomize
from tests.layers.test_contract import other_stack

pytestmark = [
    pytest.mark.backend,
    pytest.mark.slow,
    pytest.mark.skipif(BACKEND != "tensorflow", reason="models are exported from TensorFlow"),
    # Keras 3.15 looks for what NumPy 2 no longer has.
    pytest.mark.filterwarnings("ignore:In the future `np.object` will be defined:FutureWarning"),
]


@pytest.fixture
def model(rng):
    inputs = keras.Input((16, 32, 3))
    return randomize(keras.Model(inputs, keras.layers.Concatenate()(other_stack(inputs))), rng)


@pytest.fixture
def images(rng):
    return rng.normal(size=(2, 16, 32, 3)).astype("float32")


def test_saved_model(model, images, tmp_path):
    import tensorflow as tf

    expected = numpy(model(images))
    model.export(str(tmp_path / "model"), format="tf_saved_model", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "model")
    np.testing.assert_allclose(loaded.serve(images).numpy(), expected, rtol=0, atol=1e-4)


def test_onnx(model, images, tmp_path):
    pytest.importorskip("tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    expected, path = numpy(model(images)), str(tmp_path / "model.onnx")
    model.export(path, format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(path)
    (outputs,) = session.run(None, {session.get_inputs()[0].name: images})
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-4)
