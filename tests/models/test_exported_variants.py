"""Models with other parts than DeiT's, exported to ONNX: the outputs of Keras."""

import numpy as np
import pytest

from keras_deit.layers import gelu_tanh, quick_gelu
from keras_deit.models import DeiTImageClassifier
from tests.conftest import BACKEND
from tests.helpers import images, numpy, randomize, tiny_backbone

pytestmark = [
    pytest.mark.backend,
    pytest.mark.slow,
    pytest.mark.skipif(BACKEND != "tensorflow", reason="tools/export_model.py runs on TensorFlow"),
    pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning"),  # in Keras
]

# (arguments of the backbone, arguments of the classifier)
VARIANTS = {
    "dinov3": (
        {
            "position_scope": "rotary",
            "num_register_tokens": 3,
            "use_gated_mlp": True,
            "activation": "silu",
            "layer_scale_init_value": 0.1,
        },
        {},
    ),
    "siglip": ({"use_class_token": False, "activation": gelu_tanh}, {"pooling": "map"}),
    "clip": ({"use_pre_norm": True, "activation": quick_gelu}, {"pooling": "token_and_mean"}),
    "eva": (
        {"use_qk_norm": True, "use_final_norm": False},
        {"pooling": "mean", "use_head_norm": True},
    ),
    "patch dropout": ({"patch_dropout_rate": 0.5}, {}),
    "selection": ({"keep_rate": 0.4, "use_distillation_token": True}, {}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_onnx(name, rng, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    of_backbone, of_classifier = VARIANTS[name]
    model = DeiTImageClassifier(tiny_backbone(**of_backbone), 5, **of_classifier)
    randomize(model, rng)
    x = images(rng)
    expected = numpy(model(x))
    model.export(str(tmp_path / "model.onnx"), format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    [outputs] = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
