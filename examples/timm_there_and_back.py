"""A model's weights to timm, in PyTorch, and back.

    pip install timm scikit-learn && python examples/timm_there_and_back.py

Needs no network, and runs on each backend. Prints, with TensorFlow,

    timm's logits differ by at most 5.7e-06, and name the same digit on 360 of 360
    back from timm: all 59 tensors are bit-equal
"""

import os

# Less of TensorFlow's log among what this prints
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import timm
import torch
from sklearn.datasets import load_digits

from keras_deit import presets
from keras_deit.models import DeiTImageClassifier

classifier = DeiTImageClassifier.from_preset("deit_nano_distilled_patch4_32_digits")
digits = load_digits()
images = np.round(digits.images[-360:, ..., None] * (255 / 16)).astype("uint8")
logits = classifier.predict(images, verbose=0)

# There: timm's architecture in the sizes of this preset. A published preset needs its name alone.
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
model.load_state_dict(
    {name: torch.from_numpy(array) for name, array in tensors.items()}, strict=True
)
# PyTorch has channels first
converted = keras.ops.convert_to_numpy(classifier.preprocessor(images)).transpose(0, 3, 1, 2)
with torch.inference_mode():
    timm_logits = model(torch.from_numpy(converted)).numpy()
same = int((timm_logits.argmax(-1) == logits.argmax(-1)).sum())
difference = abs(timm_logits - logits).max()
print(
    f"timm's logits differ by at most {difference:.1e}, and name the same digit on {same} of "
    f"{len(images)}"
)

# ... train it there ...

# Back: onto a model of the same architecture. A published architecture that timm's `save_for_hf`
# wrote is one line: `DeiTImageClassifier.from_preset("its_folder")`.
back = DeiTImageClassifier.from_preset("deit_nano_distilled_patch4_32_digits", load_weights=False)
presets.assign_tensors(
    back,
    {name: tensor.numpy() for name, tensor in model.state_dict().items()},
    source="timm's model",
)
for weight, original in zip(back.weights, classifier.weights, strict=True):
    assert np.array_equal(weight.numpy(), original.numpy()), weight.path
print(f"back from timm: all {len(tensors)} tensors are bit-equal")
