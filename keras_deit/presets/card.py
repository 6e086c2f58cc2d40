"""The README.md of a preset, which the Hugging Face Hub shows as its model card."""

from keras_deit.presets.catalog import published
from keras_deit.presets.sources import HUB

_TEMPLATE = """\
---
{front_matter}
---

# {name}

{summary} Saved with keras_deit, DeiT vision transformers for Keras 3 on TensorFlow, JAX and
PyTorch.

## Use

```python
import keras_deit

model = keras_deit.models.{cls}.from_preset("{handle}")
{usage}
```

`from_preset` also takes the path of a local copy, and overrides such as `image_shape`,
`num_classes` and `dtype`.

## Source

{source}

## Accuracy

{accuracy}

## Licence

{licence}
"""


def model_card(name, backbone_config, task_config, parameters, has_preprocessor, origin):
    """Returns the text of the card.

    Args:
        name: string, name of the preset.
        backbone_config: dict, arguments of its `DeiTBackbone`.
        task_config: dict, arguments of its `DeiTImageClassifier`, or `None`.
        parameters: int, number of the model's parameters.
        has_preprocessor: bool, whether `predict` takes raw images.
        origin: handle of the preset that the weights come from, or `None`.
    """
    row = published(origin)
    task = "image-feature-extraction" if task_config is None else "image-classification"
    front_matter = [
        "library_name: keras_deit",
        f"pipeline_tag: {task}",
        "tags:",
        "- keras",
        "- deit",
        "- vision-transformer",
    ]
    if row is not None:
        front_matter += ["license: apache-2.0", f"base_model: {row.timm_repository}"]
    elif origin is not None:
        front_matter += [f"base_model: {origin.removeprefix(HUB)}"]
    return _TEMPLATE.format(
        front_matter="\n".join(front_matter),
        name=name,
        summary=_summary(backbone_config, task_config, parameters),
        cls="DeiTBackbone" if task_config is None else "DeiTImageClassifier",
        handle=f"{HUB}owner/{name}",
        usage=_usage(task_config, has_preprocessor),
        source=_source(row, origin),
        accuracy=_accuracy(row),
        licence=_licence(row),
    )


def _usage(task, has_preprocessor):
    outputs = "tokens" if task is None else "logits"
    images = "raw images, 0 to 255, any size" if has_preprocessor else "preprocessed images"
    return f"{outputs} = model.predict(images)  # {images}"


def _summary(backbone, task, parameters):
    image_shape = "any size"
    if None not in backbone["image_shape"]:
        image_shape = " x ".join(map(str, backbone["image_shape"]))
    what = "A DeiT backbone"
    if task is not None:
        what = f"A DeiT image classifier for {task['num_classes']} classes"
    tokens = "a class token"
    if backbone["use_distillation_token"]:
        tokens += " and a distillation token"
    return (
        f"{what}: {parameters:,} parameters, images of {image_shape}, {backbone['num_layers']} "
        f"blocks with {backbone['num_heads']} heads, width {backbone['hidden_dim']}, {tokens}."
    )


def _source(row, origin):
    if origin is None:
        return "Not recorded. Describe here what the model was trained on, and how."
    trained = "If you trained them further, describe here on what, and how."
    if row is None:
        return f"The weights come from `{origin}`. {trained}"
    return (
        f"The weights come from `{origin}`: "
        f"[{row.timm_repository}](https://huggingface.co/{row.timm_repository}), converted from "
        f"[facebookresearch/deit](https://github.com/facebookresearch/deit). {trained}"
    )


def _accuracy(row):
    if row is None:
        return "Not measured. State here the accuracy, the data and the preprocessing."
    return (
        "Of the published classifier, top-1 on the ImageNet-1k validation set: "
        f"{row.top1}% as measured by its authors, {row.timm_top1}% as measured by timm. This copy "
        "was not measured."
    )


def _licence(row):
    if row is None:
        return "Not stated. State it here, and as `license` in the front matter above."
    return "Apache-2.0, the licence of facebookresearch/deit and its weights."
