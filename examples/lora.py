"""Fine-tunes with LoRA, and saves the adapters alone: a small file for each task beside one
backbone for all.

    pip install ".[tensorflow,examples]" && python examples/lora.py

The task is digits that lie on their side, which the model that ships has never seen. Needs no
network. Writes lora.safetensors, and for comparison the preset lora_preset, to the working
directory, and prints, with TensorFlow,

    accuracy on unseen digits: 11.9% before, 88.1% after
    trained: 32,768 parameters beside 206,804 that stay
    saved: 134 kB of adapters; the whole preset has 889 kB
    loaded: outputs are bit-equal
"""

import os
import pathlib

# Less of TensorFlow's log among what this prints
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_digits

import keras_deit


def with_adapters():
    """The classifier that ships, with adapters of rank 8 in all its blocks, which alone learn."""
    classifier = keras_deit.models.DeiTImageClassifier.from_preset(
        "deit_nano_distilled_patch4_32_digits"
    )
    for block in classifier.backbone.blocks:
        for dense in (
            block.attention.qkv,
            block.attention.projection,
            block.mlp.intermediate,
            block.mlp.projection,
        ):
            dense.enable_lora(rank=8)
    for weight in classifier.weights:
        weight.trainable = weight.name.startswith("lora_kernel")
    return classifier


keras.utils.set_random_seed(0)
digits = load_digits()
images = np.rot90(np.round(digits.images[..., None] * (255 / 16)).astype("uint8"), axes=(1, 2))
training, test = slice(0, 1437), slice(-360, None)

classifier = with_adapters()
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
before = classifier.predict(images[test], verbose=0)
classifier.compile(keras.optimizers.Adam(1e-2), loss)
classifier.fit(images[training], digits.target[training], batch_size=64, epochs=2, verbose=0)
after = classifier.predict(images[test], verbose=0)
before_accuracy, after_accuracy = (
    (logits.argmax(axis=-1) == digits.target[test]).mean() for logits in (before, after)
)
print(f"accuracy on unseen digits: {before_accuracy:.1%} before, {after_accuracy:.1%} after")

adapters = {
    weight.path: keras.ops.convert_to_numpy(weight) for weight in classifier.trainable_variables
}
save_file(adapters, "lora.safetensors")
classifier.save_to_preset("lora_preset")  # all of it, adapters merged
trained, size = (
    sum(array.size for array in adapters.values()),
    pathlib.Path("lora.safetensors").stat().st_size,
)
whole = sum(file.stat().st_size for file in pathlib.Path("lora_preset").iterdir())
print(f"trained: {trained:,} parameters beside {classifier.count_params() - trained:,} that stay")
print(f"saved: {size / 1000:.0f} kB of adapters; the whole preset has {whole / 1000:.0f} kB")

# Elsewhere: the same base, other adapters.
loaded, adapters = with_adapters(), load_file("lora.safetensors")
for weight in loaded.trainable_variables:
    weight.assign(adapters.pop(weight.path))
assert not adapters, f"adapters that the model lacks: {list(adapters)}"
assert np.array_equal(loaded.predict(images[test], verbose=0), after)
print("loaded: outputs are bit-equal")
