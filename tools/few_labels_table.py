"""Does distillation help where a teacher knows more than the labels?

    pip install ".[tensorflow,examples]" && python tools/few_labels_table.py

Writes the second table of docs/distil.md. The data are scikit-learn's digits: 1197 to train on, 600
to test on. For each of 5 seeds, a teacher trains on all labels of the 1197. Its students have the
labels of 60 images, chosen at random, and the teacher's answers on all 1197. Students without a
teacher train on the 60 images for as many steps. The teacher is a DeiT, so that students can learn
from its blocks, too.

The number of labels was chosen on seed 0 and the same test images, after a trial with 100 labels.
The settings of distillation were not tuned. A seed takes about four minutes of processor time.
docs/distillation_few_labels.json keeps the results of each seed, so an interrupted
run resumes after its last finished seed.
"""

import os
import pathlib
import statistics

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags
from distilling.digits import accuracy, augmented, load, optimizer
from distilling.results import resume
from markdown_section import write_section

from keras_deit.losses import FeatureDistillationLoss, RelationDistillationLoss
from keras_deit.models import (
    BlockDistillation,
    CosubTrainer,
    DeiTBackbone,
    DeiTDistiller,
    DeiTImageClassifier,
)

FLAGS = flags.FLAGS
flags.DEFINE_integer("seeds", 5, "Number of trainings of each kind.", lower_bound=2)
flags.DEFINE_integer("steps", 400, "Training steps of each student.", lower_bound=1)
flags.DEFINE_integer("labels", 60, "Number of images with a label.", lower_bound=50)
flags.DEFINE_string("output", "docs/distillation_few_labels.json", "JSON file of the results.")
flags.DEFINE_string("page", "docs/distil.md", "Page with the table.")
TRAINING_IMAGES = 1197
TEACHER_STEPS = 600
UNLABELED = -1
ROWS = {
    "teacher": "teacher, all 1197 labels",
    "alone": "student alone, 60 labels",
    "cosub": "student alone, 60 labels, cosub",
    "hard": "hard distillation, alpha 0.5",
    "soft": "soft distillation, alpha 0.5, temperature 3",
    "features": "soft distillation and tokens of the last block",
    "relations": "soft distillation and relations of the last block",
}


def train(model, training, seed, steps):
    model.compile(
        optimizer(steps),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=UNLABELED),
    )
    data = augmented(*training, seed).repeat()
    model.fit(data, steps_per_epoch=steps, shuffle=False, verbose=0)


def build_teacher():
    backbone = DeiTBackbone((16, 16, 1), 4, 3, 4, 64, 256, drop_path_rate=0.1)
    return DeiTImageClassifier(backbone, 10)


def build_student():
    backbone = DeiTBackbone(
        (16, 16, 1), 4, 2, 3, 48, 192, use_distillation_token=True, drop_path_rate=0.1
    )
    return DeiTImageClassifier(backbone, 10)


def distil(teacher, distillation_type, *blocks):
    blocks = [BlockDistillation(loss) for loss in blocks]
    return DeiTDistiller(
        build_student(), teacher, distillation_type, temperature=3.0, block_distillation=blocks
    )


def run(seed, training, test):
    """Test accuracy of each row of the table."""
    images, labels = training
    labeled = np.random.default_rng(seed).permutation(len(images))[: FLAGS.labels]
    few = images[labeled], labels[labeled]
    known = np.full_like(labels, UNLABELED)
    known[labeled] = labels[labeled]
    keras.utils.set_random_seed(seed)
    teacher = build_teacher()
    train(teacher, training, seed, TEACHER_STEPS)
    found = {"teacher": accuracy(teacher, test)}
    students = {
        "alone": (build_student, few),
        "cosub": (lambda: CosubTrainer(build_student()), few),
        "hard": (lambda: distil(teacher, "hard"), (images, known)),
        "soft": (lambda: distil(teacher, "soft"), (images, known)),
        "features": (
            lambda: distil(teacher, "soft", FeatureDistillationLoss()),
            (images, known),
        ),
        "relations": (
            lambda: distil(teacher, "soft", RelationDistillationLoss(num_relation_heads=4)),
            (images, known),
        ),
    }
    for name, (build, data) in students.items():
        keras.utils.set_random_seed(seed)
        model = build()
        train(model, data, seed, FLAGS.steps)
        found[name] = accuracy(getattr(model, "student", model), test)
        keras.backend.clear_session()
    return found


def table(results):
    """Accuracy by row, and its difference to the student alone with the same seed."""
    lines = [
        "| | accuracy, mean | standard deviation | gain over alone, mean | standard deviation | "
        "smallest to largest |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, title in ROWS.items():
        values = [result[name] for result in results]
        cells = [title, f"{statistics.mean(values):.1%}", f"{statistics.stdev(values):.1%}"]
        if name in ("teacher", "alone"):
            cells += ["", "", ""]
        else:
            gains = [100 * (result[name] - result["alone"]) for result in results]
            cells += [
                f"{statistics.mean(gains):+.1f} points",
                f"{statistics.stdev(gains):.1f}",
                f"{min(gains):+.1f} to {max(gains):+.1f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(_):
    settings = {name: FLAGS[name].value for name in ("steps", "labels")}
    training, test = load(TRAINING_IMAGES)
    results = resume(FLAGS.output, settings, FLAGS.seeds, lambda seed: run(seed, training, test))
    write_section(pathlib.Path(FLAGS.page), "few labels", table(results))
    print(table(results))


if __name__ == "__main__":
    app.run(main)
