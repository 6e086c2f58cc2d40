"""Draws what a model looks at in a photograph, or what it has learnt of patches.

    pip install ".[tensorflow,examples]"
    python tools/visualize_attention.py --image photo.jpg --preset deit_small_distilled_patch16_224
    --output rollout.png python tools/visualize_attention.py --image photo.jpg --preset
    deit_small_distilled_patch16_224 --output heads.png \\
        --kind heads --block 11 --token distillation
    python tools/visualize_attention.py --preset deit_small_distilled_patch16_224 --output
    filters.png --kind filters

`rollout`: attention through all blocks; `heads`: each head of one block; `filters`: the patch
    embedding; `positions`: how alike the positions
are. The photograph keeps its size and aspect (a tiny one is enlarged); what the model's crop cuts
off has no map over it. --output is replaced if it exists.
"""

import os
import pathlib
import sys

# Less of TensorFlow's log among what this prints
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags
from matplotlib.backend_bases import FigureCanvasBase

from keras_deit import visualization
from keras_deit.models import DeiTBackbone, DeiTImageClassifier

FLAGS = flags.FLAGS
flags.DEFINE_string("preset", None, "Handle of a preset.", required=True)
flags.DEFINE_string("output", None, "Picture to write, such as attention.png.", required=True)
flags.DEFINE_string("image", None, "Photograph, for rollout and heads.")
flags.DEFINE_enum("kind", "rollout", ["rollout", "heads", "filters", "positions"], "What to draw.")
flags.DEFINE_enum("token", "class", ["class", "distillation"], "Who looks.")
flags.DEFINE_integer("block", -1, "Of heads: number of the block; -1 is the last.")
flags.DEFINE_enum(
    "head_fusion",
    "mean",
    ["mean", "max", "min"],
    "Of rollout: how the heads of a block become one.",
)
flags.DEFINE_float(
    "discard_ratio",
    0.0,
    "Of rollout: share of the smallest scores that counts as none.",
    0.0,
    0.999,
)


def draw():
    if FLAGS.kind in ("filters", "positions"):
        backbone = DeiTBackbone.from_preset(FLAGS.preset)
        if FLAGS.kind == "filters":
            return visualization.plot_filters(visualization.patch_filters(backbone)[:28])
        return visualization.plot_position_similarity(visualization.position_similarity(backbone))
    if FLAGS.image is None:
        raise ValueError(f"--kind {FLAGS.kind} needs a photograph. Give --image photo.jpg.")
    classifier = DeiTImageClassifier.from_preset(FLAGS.preset)
    backbone, converter = classifier.backbone, classifier.preprocessor
    if converter is None:
        raise ValueError(
            f"{FLAGS.preset} does not say how images are converted for it. Save it with a "
            "`preprocessor`."
        )
    if not -backbone.num_layers <= FLAGS.block < backbone.num_layers:
        raise ValueError(
            f"--block must be of the {backbone.num_layers} blocks, 0 to {backbone.num_layers - 1}. "
            f"Received: {FLAGS.block}"
        )
    channels_last = backbone.data_format == "channels_last"
    image = visualization.read_photograph(
        FLAGS.image, backbone.image_shape[-1 if channels_last else 0]
    )
    raw = image[None] if channels_last else image[None].transpose(0, 3, 1, 2)
    model = keras.Model(classifier.input, classifier.outputs_with_attention_scores)
    found = model.predict(converter(raw), verbose=0)
    image = visualization.enlarge(image)
    scores, box = found["attention_scores"], converter.crop_box(*image.shape[:2])
    tokens = {
        "num_prefix_tokens": backbone.num_prefix_tokens,
        "grid_size": backbone.grid_size,
        "token": FLAGS.token,
    }
    if FLAGS.kind == "heads":
        block = FLAGS.block % backbone.num_layers
        maps = visualization.attention_maps(scores[f"block_{block}"], **tokens)[0]
        titles = [f"block {block}, head {head}" for head in range(len(maps))]
        return visualization.plot_overlays([image] * len(maps), maps, titles, box)
    rollout = visualization.attention_rollout(
        scores, head_fusion=FLAGS.head_fusion, discard_ratio=FLAGS.discard_ratio, **tokens
    )[0]
    titles = [_prediction(classifier, found["outputs"]), f"where its {FLAGS.token} token looks"]
    return visualization.plot_overlays([image, image], [None, rollout], titles, box, columns=2)


def _prediction(classifier, logits):
    if classifier.labels is None:
        return f"class {logits[0].argmax()}"
    [[(label, probability)]] = classifier.decode_predictions(logits, top=1)
    return f"{label} ({probability:.0%})"


def check_output(path):
    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in formats:
        raise ValueError(
            f"--output must end in one of {', '.join(f'.{name}' for name in sorted(formats))}. "
            f"Received: {path}"
        )
    if path.is_dir():
        raise ValueError(f"--output must be a file, but {path} is a folder.")


def save(figure, path):
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    try:
        figure.savefig(beside, dpi=150, format=path.suffix.removeprefix("."))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def main(_):
    output = pathlib.Path(os.path.expanduser(FLAGS.output))
    try:
        check_output(output)
        save(draw(), output)
    except (ValueError, OSError) as error:
        sys.exit(f"Nothing drawn. {error}")
    print(f"Wrote {output}")


if __name__ == "__main__":
    app.run(main)
