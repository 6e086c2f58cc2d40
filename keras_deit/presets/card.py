"""The README.md of a preset, which the Hugging Face Hub shows as its model card."""

from keras_deit.presets.catalog import published
from keras_deit.presets.files import HUB

_TEMPLATE = """\
---
{front_matter}
---

# {name}

{summary} Saved by keras_deit, a Keras 3 package of DeiT vision transformers, which runs on TensorFlow, JAX and PyTorch.

## Use

```python
import keras_deit

model = keras_deit.models.{cls}.from_preset("{handle}")
{usage}
```

`from_preset` takes the path of this folder, too, and any argument of the model: another `image_shape`, `num_classes` or `dtype`.

## Source

{source}

## Accuracy

{accuracy}

## Licence

{licence}
"""


def model_card(name, backbone_config, task_config, parameters, has_preprocessor, origin):
    """The card's text.

    Args:
        name: string, what the preset is called.
        backbone_config: dict, the arguments of its `DeiTBackbone`.
        task_config: dict, the arguments of its `DeiTImageClassifier`, or `None`.
        parameters: int, how many the model has.
        has_preprocessor: bool, whether `predict` takes raw images.
        origin: the handle that the weights go back to, or `None`.
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
    call = "tokens = model.predict(images)" if task is None else "logits = model.predict(images)"
    return f"{call}  # {'raw images, 0 to 255, of any size' if has_preprocessor else 'images as the model was trained on'}"


def _summary(backbone, task, parameters):
    height_width_channels = " x ".join(map(str, backbone["image_shape"]))
    what = (
        "A DeiT backbone"
        if task is None
        else f"A DeiT image classifier for {task['num_classes']} classes"
    )
    tokens = (
        "a class token and a distillation token"
        if backbone["use_distillation_token"]
        else "a class token"
    )
    return (
        f"{what}: {parameters:,} parameters, images of {height_width_channels}, "
        f"{backbone['num_layers']} blocks of "
        f"{backbone['num_heads']} heads, width {backbone['hidden_dim']}, {tokens}."
    )


def _source(row, origin):
    if origin is None:
        return "No source is recorded. State here what the model was trained on, and how."
    if row is None:
        return f"The weights go back to `{origin}`. If they were trained since, state here on what, and how."
    return (
        f"The weights go back to `{origin}`, those of "
        f"[{row.timm_repository}](https://huggingface.co/{row.timm_repository}), which come from "
        "[facebookresearch/deit](https://github.com/facebookresearch/deit). If they were trained "
        "since, state here on what, and how."
    )


def _accuracy(row):
    if row is None:
        return "Not measured. State here the figure, the data, and the preprocessing."
    return (
        f"The published classifier has {row.top1} % top-1 on ImageNet-1k's validation set as its "
        "authors measured it, and "
        f"{row.timm_top1} % as timm does. That is the starting point; it was not measured again "
        "for this folder."
    )


def _licence(row):
    if row is None:
        return "Not stated. Who publishes the model states it here, and as `license` at the top."
    return "Apache-2.0, which is that of facebookresearch/deit and its weights."
