"""Move weights to timm, in PyTorch, and back.

    pip install timm scikit-learn && python examples/timm_there_and_back.py

No download needed; works on every backend. Prints with TensorFlow:

    timm: logits differ by at most 5.7e-06; same digit on 360 of 360
    back from timm: all 59 tensors are bit-equal
"""

import os

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import timm
import torch
from sklearn.datasets import load_digits

from keras_deit import presets
from keras_deit.models import DeiTImageClassifier

PRESET = "deit_nano_distilled_patch4_32_digits"
classifier = DeiTImageClassifier.from_preset(PRESET)
images = np.round(load_digits().images[-360:, ..., None] * (255 / 16)).astype("uint8")
logits = classifier.predict(images, verbose=0)

# To timm. The sizes are those of this preset; for a published preset the name is enough.
model = timm.create_model(
    "deit_tiny_distilled_patch16_224",
    img_size=32,
    patch_size=4,
    in_chans=1,
    embed_dim=64,
    depth=4,
    num_heads=4,
    num_classes=10,
).eval()
tensors = presets.timm_tensors(classifier)
state = {name: torch.from_numpy(array) for name, array in tensors.items()}
model.load_state_dict(state, strict=True)
converted = keras.ops.convert_to_numpy(classifier.preprocessor(images))
with torch.inference_mode():  # PyTorch is channels first
    timm_logits = model(torch.from_numpy(converted.transpose(0, 3, 1, 2))).numpy()
same = int((timm_logits.argmax(-1) == logits.argmax(-1)).sum())
difference = abs(timm_logits - logits).max()
print(f"timm: logits differ by at most {difference:.1e}; same digit on {same} of {len(images)}")

# And back. A model that timm's `save_for_hf` wrote loads with `from_preset("its_directory")`.
back = DeiTImageClassifier.from_preset(PRESET, load_weights=False)
arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
presets.assign_tensors(back, arrays, source="timm's model")
for weight, original in zip(back.weights, classifier.weights, strict=True):
    assert np.array_equal(weight.numpy(), original.numpy()), weight.path
print(f"back from timm: all {len(tensors)} tensors are bit-equal")
