"""Fine-tune with LoRA and save only the adapters: a small file per task, one backbone for all.

    pip install ".[tensorflow,examples]" && python examples/lora.py

The task is digits rotated by 90 degrees. No download needed. Writes lora.safetensors to the working
directory, and prints with TensorFlow:

    accuracy on unseen digits: 11.9% before, 88.3% after
    trained: 34,068 parameters; frozen: 205,504
    loaded 140 kB of adapters and head: outputs are bit-equal
    merged: outputs differ by 0e+00
"""

import os

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.datasets import load_digits

from keras_deit.models import DeiTImageClassifier

PRESET = "deit_nano_distilled_patch4_32_digits"

keras.utils.set_random_seed(0)
digits = load_digits()
images = np.rot90(np.round(digits.images[..., None] * (255 / 16)).astype("uint8"), axes=(1, 2))
training, test = slice(0, 1437), slice(-360, None)

classifier = DeiTImageClassifier.from_preset(PRESET)
before = classifier.predict(images[test], verbose=0)
classifier.enable_lora(rank=8, targets=("qkv", "projection", "intermediate"))
classifier.compile(keras.optimizers.Adam(1e-2))
classifier.fit(images[training], digits.target[training], batch_size=64, epochs=2, verbose=0)
after = classifier.predict(images[test], verbose=0)
accuracies = [(logits.argmax(-1) == digits.target[test]).mean() for logits in (before, after)]
print("accuracy on unseen digits: {:.1%} before, {:.1%} after".format(*accuracies))

trained = sum(int(np.prod(weight.shape)) for weight in classifier.trainable_weights)
print(f"trained: {trained:,} parameters; frozen: {classifier.count_params() - trained:,}")
classifier.save_lora_weights("lora.safetensors")  # adapters and head
loaded = DeiTImageClassifier.from_preset(PRESET)
loaded.load_lora_weights("lora.safetensors")
assert np.array_equal(loaded.predict(images[test], verbose=0), after)
size = os.path.getsize("lora.safetensors") / 1000
print(f"loaded {size:.0f} kB of adapters and head: outputs are bit-equal")

# A model without LoRA, for `save_to_preset` or an export. Both merge by themselves, too.
merged = loaded.merge_lora()
difference = abs(merged.predict(images[test], verbose=0) - after).max()
print(f"merged: outputs differ by {difference:.0e}")
