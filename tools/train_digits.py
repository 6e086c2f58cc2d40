"""Trains `deit_nano_distilled_patch4_32_digits`, the model that ships inside keras_deit.

    pip install ".[tensorflow,examples]" && python tools/train_digits.py --output digits_preset

A small convolutional teacher learns scikit-learn's handwritten digits and is distilled, with hard
labels, into a DeiT with 0.2 million parameters. Both see only the first 1437 digits; the last 360
are for the final accuracies. Every setting was chosen with `--validate`, which trains on the first
1150 digits and tests on the next 287.

Needs the TensorFlow backend, because the teacher runs inside tf.data.
"""

import os

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from sklearn.datasets import load_digits

import keras_deit

FLAGS = flags.FLAGS
flags.DEFINE_string("output", "digits_preset", "Directory for the trained preset.")
flags.DEFINE_integer("epochs", 200, "Number of epochs of the student.", lower_bound=1)
flags.DEFINE_integer("teacher_epochs", 40, "Number of epochs of the teacher.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Seed of weights, order and augmentation.")
flags.DEFINE_bool(
    "validate", False, "Train on the first 1150 digits, test on the next 287, write nothing."
)

NUM_TRAINING = 1437
NUM_VALIDATION = 287
BATCH_SIZE = 64


def load_images():
    """Images (1797, 8, 8, 1), uint8, 0 to 255, and their digits."""
    digits = load_digits()
    return np.round(digits.images[..., None] * (255 / 16)).astype("uint8"), digits.target


def build_teacher():
    layers = [keras.Input((32, 32, 1))]
    for filters, strides in ((32, 2), (64, 2), (128, 2)):
        layers += [
            keras.layers.Conv2D(filters, 3, strides, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("relu"),
            keras.layers.Conv2D(filters, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("relu"),
        ]
    layers += [
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(10),
    ]
    return keras.Sequential(layers, name="teacher")


def build_student():
    backbone = keras_deit.models.DeiTBackbone(
        image_shape=(32, 32, 1),
        patch_size=4,
        num_layers=4,
        num_heads=4,
        hidden_dim=64,
        intermediate_dim=256,
        use_distillation_token=True,
        drop_path_rate=0.1,
        data_format="channels_last",
    )
    # 8 x 8 pixels are resized to 32 x 32, so a patch of 4 x 4 covers about one pixel.
    converter = keras_deit.layers.DeiTImageConverter(
        32, crop_ratio=1.0, mean=(0.3,), std=(0.35,), data_format="channels_last"
    )
    return keras_deit.models.DeiTImageClassifier(
        backbone, num_classes=10, preprocessor=converter, labels=[str(digit) for digit in range(10)]
    )


def augmented(images, labels, teacher=None):
    """Augmented batches in a new order every epoch, with the teacher's predictions if given."""
    background = float(images.min())
    options = {"fill_mode": "constant", "fill_value": background, "data_format": "channels_last"}
    augmentation = (
        keras.layers.RandomRotation(0.04, **options),  # of a full turn: 14 degrees
        keras.layers.RandomShear(0.15, 0.15, **options),
        keras.layers.RandomZoom((-0.15, 0.15), (-0.15, 0.15), **options),
        keras.layers.RandomTranslation(0.1, 0.1, **options),
    )

    def augment(images, labels):
        for layer in augmentation:
            images = layer(images, training=True)
        return images, labels

    def ask(images, labels):
        taught = keras.ops.argmax(teacher(images, training=False), axis=-1)
        return images, {"class": labels, "distillation": taught}

    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(
        len(images), seed=FLAGS.seed
    )
    dataset = dataset.batch(BATCH_SIZE, drop_remainder=True).map(augment)
    return (dataset if teacher is None else dataset.map(ask)).prefetch(2)


def optimizer(learning_rate, epochs, num_batches, weight_decay):
    steps = epochs * num_batches
    warmup = 5 * num_batches
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=max(steps - warmup, 1),
        warmup_target=learning_rate,
        warmup_steps=warmup,
    )
    return keras.optimizers.AdamW(
        schedule, weight_decay=weight_decay, clipnorm=1.0, use_ema=True, ema_momentum=0.99
    )


def train_teacher(images, labels, epochs):
    teacher, digits = build_teacher(), augmented(images, labels)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher.compile(
        optimizer(2e-3, epochs, len(digits), weight_decay=1e-3), loss, metrics=["accuracy"]
    )
    teacher.fit(digits, epochs=epochs, shuffle=False, verbose=2)
    teacher.trainable = False
    return teacher


def distil(teacher, images, labels, epochs):
    student, digits = build_student(), augmented(images, labels, teacher)
    two_heads = keras.Model(student.input, student.token_logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    two_heads.compile(
        optimizer(2e-3, epochs, len(digits), weight_decay=0.05),
        loss={"class": loss, "distillation": loss},
        loss_weights={"class": 0.5, "distillation": 0.5},
        metrics={"class": ["accuracy"], "distillation": ["accuracy"]},
    )
    two_heads.fit(digits, epochs=epochs, shuffle=False, verbose=2)
    return student


def print_accuracies(student, teacher, images, labels):
    converted = student.preprocessor(images)
    logits = keras.Model(student.input, {**student.token_logits, "mean": student.output}).predict(
        converted, verbose=0
    )
    logits["teacher"] = teacher.predict(converted, verbose=0)
    for name in ("class", "distillation", "mean", "teacher"):
        correct = int((logits[name].argmax(axis=-1) == labels).sum())
        print(f"{name:<12} {correct / len(labels):6.1%}  ({correct} of {len(labels)})")


def main(_):
    keras.utils.set_random_seed(FLAGS.seed)
    images, labels = load_images()
    if FLAGS.validate:
        images, labels = images[:NUM_TRAINING], labels[:NUM_TRAINING]
    num_training = NUM_TRAINING - NUM_VALIDATION if FLAGS.validate else NUM_TRAINING
    converted = keras.ops.convert_to_numpy(build_student().preprocessor(images[:num_training]))
    teacher = train_teacher(converted, labels[:num_training], FLAGS.teacher_epochs)
    student = distil(teacher, converted, labels[:num_training], FLAGS.epochs)
    print_accuracies(student, teacher, images[num_training:], labels[num_training:])
    if not FLAGS.validate:
        student.save_to_preset(FLAGS.output)
        print(f"Wrote {FLAGS.output}: {student.count_params():,} parameters")


if __name__ == "__main__":
    app.run(main)
