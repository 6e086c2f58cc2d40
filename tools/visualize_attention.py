"""Draws where a model looks in a photograph, or what it learned about patches.

    pip install ".[tensorflow,examples]"

Attention through all blocks (rollout):

    python tools/visualize_attention.py --image photo.jpg --output rollout.png \\
        --preset deit_small_distilled_patch16_224

Every head of one block:

    python tools/visualize_attention.py --image photo.jpg --output heads.png \\
        --preset deit_small_distilled_patch16_224 --kind heads --block 11 --token distillation

The filters of the patch embedding, or the similarity of the positions:

    python tools/visualize_attention.py --output filters.png \\
        --preset deit_small_distilled_patch16_224 --kind filters

The photograph keeps its size and aspect ratio (a tiny one is enlarged). Parts that the model's crop
removes are not colored.
"""

import os
import pathlib
import sys

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags
from flag_errors import of_flag
from matplotlib.backend_bases import FigureCanvasBase

from keras_deit import visualization
from keras_deit.atomic import atomic_file
from keras_deit.models import DeiTBackbone, DeiTImageClassifier

FLAGS = flags.FLAGS
flags.DEFINE_string("preset", None, "Name, hf:// address or directory of a preset.", required=True)
flags.DEFINE_string(
    "output", None, "Picture to write, such as attention.png; replaced if it exists.", required=True
)
flags.DEFINE_string("image", None, "Photograph, for --kind rollout and heads.")
flags.DEFINE_enum("kind", "rollout", ["rollout", "heads", "filters", "positions"], "What to draw.")
flags.DEFINE_enum(
    "token",
    "class",
    ["class", "distillation", "mean"],
    "Token whose attention is drawn, or the mean of all patch tokens.",
)
flags.DEFINE_integer("block", -1, "For --kind heads: index of the block; -1 is the last.")
flags.DEFINE_enum(
    "head_fusion",
    "mean",
    ["mean", "max", "min"],
    "For --kind rollout: how to combine the heads of a block.",
)
flags.DEFINE_float(
    "discard_ratio",
    0.0,
    "For --kind rollout: share of the smallest scores that is set to zero.",
    0.0,
    0.999,
)


def draw():
    """The figure that the flags ask for."""
    if FLAGS.kind in ("rollout", "heads"):
        return draw_attention()
    with of_flag("preset", FLAGS.preset):
        backbone = DeiTBackbone.from_preset(FLAGS.preset)
    if FLAGS.kind == "filters":
        return visualization.plot_filters(visualization.patch_filters(backbone)[:28])
    return visualization.plot_position_similarity(visualization.position_similarity(backbone))


def draw_attention():
    if FLAGS.image is None:
        raise ValueError(f"--kind {FLAGS.kind} needs a photograph: add --image photo.jpg.")
    with of_flag("preset", FLAGS.preset):
        classifier = DeiTImageClassifier.from_preset(FLAGS.preset)
        backbone, converter = classifier.backbone, classifier.preprocessor
        if converter is None:
            raise ValueError(
                "The preset has no preprocessor. Save it again with one: "
                "`from_preset(handle, preprocessor=...).save_to_preset(directory)`."
            )
    if not -backbone.num_layers <= FLAGS.block < backbone.num_layers:
        raise ValueError(
            f"--block must be an index of the {backbone.num_layers} blocks, 0 to "
            f"{backbone.num_layers - 1}. Received: {FLAGS.block}"
        )
    with of_flag("image", FLAGS.image):
        image = visualization.read_photograph(FLAGS.image, backbone.num_channels)
    is_channels_first = backbone.data_format == "channels_first"
    raw = image[None].transpose(0, 3, 1, 2) if is_channels_first else image[None]
    model = keras.Model(classifier.input, classifier.outputs_with_attention_scores)
    found = model.predict(converter(raw), verbose=0)
    image = visualization.enlarge(image)
    scores, box = found["attention_scores"], converter.crop_box(*image.shape[:2])
    tokens = {
        "num_prefix_tokens": backbone.num_prefix_tokens,
        "num_register_tokens": backbone.num_register_tokens,
        "grid_size": backbone.grid_size_of(converter.image_size),
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
    who = "patches look" if FLAGS.token == "mean" else f"{FLAGS.token} token looks"
    titles = [_prediction(classifier, found["outputs"]), f"where the {who}"]
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
        raise ValueError(f"--output must be a file. Received: the folder {path}")


def main(_):
    output = pathlib.Path(os.path.expanduser(FLAGS.output))
    try:
        check_output(output)
        figure = draw()
        with atomic_file(output) as file:
            figure.savefig(file, dpi=150)
    except (ValueError, OSError) as error:
        sys.exit(f"Nothing drawn. {error}")
    print(f"Wrote {output}")


if __name__ == "__main__":
    app.run(main)
