"""scikit-learn's digits, as the scripts that ask whether distillation helps show them to models."""

import keras
import tensorflow as tf
from sklearn.datasets import load_digits

BATCH_SIZE = 50


def load(num_training_images):
    """(images, digits) to train on and to test on; images (N, 16, 16, 1), about -1 to 1."""
    digits = load_digits()
    images = tf.image.resize(digits.images[..., None] / 8 - 1, (16, 16), "bicubic").numpy()
    count = num_training_images
    return (images[:count], digits.target[:count]), (images[count:], digits.target[count:])


def augmented(images, labels, seed):
    """Batches in a new order with new distortions every epoch, the same for the same seed."""
    options = {"fill_mode": "constant", "fill_value": -1.0, "data_format": "channels_last"}
    layers = (
        keras.layers.RandomRotation(0.04, seed=seed, **options),
        keras.layers.RandomZoom((-0.15, 0.15), (-0.15, 0.15), seed=seed, **options),
        keras.layers.RandomTranslation(0.1, 0.1, seed=seed, **options),
    )

    def augment(images, labels):
        for layer in layers:
            images = layer(images, training=True)
        return images, labels

    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=seed)
    return dataset.batch(BATCH_SIZE, drop_remainder=True).map(augment).prefetch(2)


def optimizer(steps):
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - steps // 10, warmup_target=2e-3, warmup_steps=steps // 10
    )
    return keras.optimizers.AdamW(schedule, weight_decay=0.05, clipnorm=1.0)


def accuracy(model, data):
    return float((model.predict(data[0], verbose=0).argmax(-1) == data[1]).mean())
