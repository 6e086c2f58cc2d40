"""Shows in the browser how a model classifies a photograph, and where each head looks.

    pip install ".[tensorflow,explorer]"
    python tools/attention_explorer.py --preset deit_small_distilled_patch16_224

Then open the printed address. The default is the model of handwritten digits that ships inside
keras_deit.
"""

import os
import pathlib
import tempfile

# Keeps TensorFlow's log messages out of the output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import gradio
import keras
import numpy as np
from absl import app, flags, logging
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from keras_deit import visualization
from keras_deit.models import DeiTImageClassifier

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "preset",
    "deit_nano_distilled_patch4_32_digits",
    "Name, hf:// address or directory of a classifier.",
)
flags.DEFINE_integer("port", 7860, "Port of the page on this machine.", 1, 65535)

LARGE = "#photograph img, #attention img { width: 100%; height: 100%; object-fit: contain; }"
SMALL = 64  # pixels; smaller images are shown with visible pixels
SQUARES = "#photograph img { image-rendering: pixelated; }"
ALL_BLOCKS, ONE_HEAD = "through all blocks", "one head of one block"


class Explorer:
    """Runs the model once per photograph, and draws what the page asks for."""

    def __init__(self, classifier):
        self.classifier, self.backbone = classifier, classifier.backbone
        self.tokens = ["class"] if self.backbone.use_class_token else ["mean"]
        if self.backbone.use_distillation_token:
            self.tokens.append("distillation")
        self.model = keras.Model(classifier.input, classifier.outputs_with_attention_scores)

    def look(self, upload):
        """({label: probability}, what `draw` needs) of what the page uploaded, a dict or `None`."""
        if upload is None:
            return None, None
        try:
            image = visualization.read_photograph(upload["path"], self.backbone.num_channels)
        except ValueError as error:
            raise gradio.Error(str(error), print_exception=False) from error
        found = self.model.predict_on_batch(self.classifier.preprocessor(image[None]))
        scores, maps = found["attention_scores"], {}
        for token in self.tokens:
            sizes = {
                "num_prefix_tokens": self.backbone.num_prefix_tokens,
                "num_register_tokens": self.backbone.num_register_tokens,
                "grid_size": self.backbone.grid_size_of(self.classifier.preprocessor.image_size),
                "token": token,
            }
            rollout = visualization.attention_rollout(scores, **sizes)[0]
            blocks = [
                visualization.attention_maps(scores[block.name], **sizes)[0]
                for block in self.backbone.blocks
            ]
            maps[token] = {ALL_BLOCKS: rollout, ONE_HEAD: np.stack(blocks)}
        [best] = self.classifier.decode_predictions(found["outputs"], top=5)
        return dict(best), (visualization.enlarge(image), maps)

    def draw(self, seen, kind, token, block, head):
        if seen is None:
            return None
        image, maps = seen
        shares = (
            maps[token][kind] if kind == ALL_BLOCKS else maps[token][kind][int(block), int(head)]
        )
        return visualization.overlay(
            image, shares, self.classifier.preprocessor.crop_box(*image.shape[:2])
        )


def write_examples(folder, num_channels):
    """Writes scikit-learn's photographs, or digits if the model takes gray images."""
    if num_channels == 3:
        images = load_sample_images().images
    else:
        images = np.round(load_digits().images[-6:] * (255 / 16)).astype("uint8")
    files = [pathlib.Path(folder) / f"{number}.png" for number in range(len(images))]
    for file, image in zip(files, images):
        Image.fromarray(image).save(file)
    return [str(file) for file in files]


def build_page(explorer, preset, examples):
    backbone = explorer.backbone
    with gradio.Blocks(title="Where DeiT looks", analytics_enabled=False) as page:
        gradio.Markdown(
            f"# Where DeiT looks\nUpload an image: `{preset}` classifies it, and colors show which "
            "parts its tokens attend to."
        )
        seen = gradio.State()
        with gradio.Row():
            with gradio.Column():
                photograph = gradio.Image(
                    sources=["upload", "clipboard"],
                    label="Image",
                    height=400,
                    elem_id="photograph",
                )
                gradio.Examples(examples, photograph)
                labels = gradio.Label(label="Predictions", num_top_classes=5)
            with gradio.Column():
                picture = gradio.Image(
                    label="Where the model looks",
                    format="png",
                    height=400,
                    interactive=False,
                    elem_id="attention",
                )
                kind = gradio.Radio([ALL_BLOCKS, ONE_HEAD], value=ALL_BLOCKS, label="Attention")
                token = gradio.Radio(explorer.tokens, value=explorer.tokens[0], label="Token")
                last = backbone.num_layers - 1
                block = gradio.Slider(0, last, value=last, step=1, label="Block", interactive=False)
                head = gradio.Slider(
                    0, backbone.num_heads - 1, value=0, step=1, label="Head", interactive=False
                )
        controls = [kind, token, block, head]
        # Gradio's preprocessing opens the image: of a broken one, the page would say only "Error".
        photograph.change(explorer.look, photograph, [labels, seen], preprocess=False).then(
            explorer.draw, [seen, *controls], picture
        )
        kind.change(
            lambda kind: [gradio.update(interactive=kind == ONE_HEAD)] * 2, kind, [block, head]
        )
        for control in controls:
            control.change(explorer.draw, [seen, *controls], picture)
        page.load(lambda: examples[0], None, photograph)
    return page


def main(_):
    logging.set_verbosity(logging.WARNING)  # hides Gradio's requests to itself
    try:
        classifier = DeiTImageClassifier.from_preset(FLAGS.preset)
        if classifier.labels is None or classifier.preprocessor is None:
            raise ValueError(
                "The preset has no labels or no preprocessor. Save it again with both: "
                "`from_preset(handle, labels=..., preprocessor=...).save_to_preset(directory)`."
            )
        if classifier.backbone.data_format != "channels_last":
            raise ValueError(
                "The page needs a channels_last preset. Save the preset again with "
                "`from_preset(handle, data_format='channels_last').save_to_preset(directory)`."
            )
    except (ValueError, OSError) as error:
        raise SystemExit(f"Nothing to explore. --preset {FLAGS.preset}: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        examples = write_examples(folder, classifier.backbone.num_channels)
        page = build_page(Explorer(classifier), FLAGS.preset, examples)
        page.launch(
            server_port=FLAGS.port,
            css=LARGE + SQUARES * (max(classifier.preprocessor.image_size) <= SMALL),
        )


if __name__ == "__main__":
    app.run(main)
