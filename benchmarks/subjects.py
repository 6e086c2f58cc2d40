"""What is measured: this package and its peers, each made from the same weights and run at its best setting.

A subject's function takes the run's `Request` and returns a `Subject`. It imports its library itself: an ImportError becomes a row that
says so.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import numpy as np

from benchmarks.frameworks import framework


class NotSupportedError(Exception):
    """The subject does not have this mode, dtype, backend or preset."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One subject's part of a run."""

    subject: str
    preset: str
    mode: str  # inference, training, attention
    backend: str
    dtype: str
    jit: bool
    batch_size: int
    device: str
    image_size: int | None
    folder: str  # of case.py


@dataclasses.dataclass
class Subject:
    """A step to time, and how to tell that it computes what it should."""

    framework: object
    step: Callable  # no arguments; returns what `framework.wait` waits for
    logits: Callable | None  # images (2, H, W, 3) -> array (2, classes)
    answers: str | None  # which of the case's logits those are
    flops: int | None = None  # of a step, where it is not the model's


def keras_deit(request):
    from keras_deit.models import DeiTImageClassifier

    if request.dtype == "int8":
        model = DeiTImageClassifier.from_preset(_path(request, "keras_deit"), preprocessor=None)
        model.quantize("int8")
    else:
        model = DeiTImageClassifier.from_preset(_path(request, "keras_deit"), preprocessor=None, dtype=request.dtype)
    return _keras_subject(request, model, "mean", lambda: model.backbone.attention_scores)


def keras_hub(request):
    import keras_hub

    _refuse(request, not request.preset.startswith("deit_") or "_distilled_" not in request.preset, "distilled DeiT alone")
    _refuse(request, backbone_config(request.folder)["image_shape"][-1] != 3, "images of three channels alone")
    _refuse(request, request.dtype == "int8", "no int8")
    model = keras_hub.models.DeiTImageClassifier.from_preset(str(_path(request, "transformers")), dtype=request.dtype)
    model.preprocessor = None

    def scores():
        raise NotSupportedError("keras_hub: attention scores cannot be reached")

    return _keras_subject(request, model, "class", scores)


def _keras_subject(request, model, answers, attention_scores):
    import keras

    run = framework(request.backend, request.device)
    images = _images(request, model.input.shape[1:])
    if request.mode == "training":
        model.compile(
            optimizer=keras.optimizers.AdamW(1e-5, weight_decay=0.05),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=request.jit,
        )
        images = run.place(images)
        labels = run.place(_labels(request))
        return Subject(run, lambda: model.train_on_batch(images, labels), None, answers)
    if request.mode == "attention":
        model = keras.Model(model.input, {"logits": model.output, "scores": attention_scores()})
    call = run.keras_inference(model, request.jit)
    images = run.place(images, _input_dtype(request))

    def logits(images):
        outputs = call(run.place(images, _input_dtype(request)))
        outputs = outputs["logits"] if isinstance(outputs, dict) else outputs
        return np.asarray(keras.ops.convert_to_numpy(outputs), "float32")

    return Subject(run, lambda: call(images), logits, answers)


def timm(request):
    import timm
    from safetensors.torch import load_file

    _refuse(request, request.mode == "attention", "does not return attention scores")
    _refuse(request, request.preset.endswith("_digits"), "not in its catalog")
    model = timm.create_model(request.preset.removesuffix("_in21k"), img_size=_image_size(request))
    model.load_state_dict(load_file(_path(request, "timm.safetensors")))
    return _torch_subject(request, model, lambda outputs: outputs)


def transformers(request):
    from transformers import AutoModelForImageClassification, DeiTForImageClassificationWithTeacher

    _refuse(request, not _path(request, "transformers").exists(), "no DeiT III")
    distilled = "_distilled_" in request.preset
    cls = DeiTForImageClassificationWithTeacher if distilled else AutoModelForImageClassification
    with_scores = request.mode == "attention"
    model = cls.from_pretrained(_path(request, "transformers"), attn_implementation="eager" if with_scores else "sdpa")
    model.config.output_attentions = with_scores
    return _torch_subject(request, model, lambda outputs: outputs.logits)


def _torch_subject(request, model, logits_of):
    run = framework("torch", request.device)
    torch = run.torch
    _refuse(request, request.dtype == "int8", "no int8")
    mixed = request.dtype.startswith("mixed_")
    dtype = getattr(torch, request.dtype.removeprefix("mixed_"))
    model = model.to(run.device)
    if not mixed:
        model = model.to(dtype)
    size = _image_size(request)
    images = run.place(_images(request, (3, size, size)))
    images = images if mixed else images.to(dtype)

    def forward(images):
        with torch.autocast(run.device, dtype=dtype, enabled=mixed):
            return model(images)

    call = run.compile(forward, request.jit)
    if request.mode == "training":
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05, fused=True)
        labels = run.place(_labels(request))

        def train():
            optimizer.zero_grad(set_to_none=True)
            outputs = call(images)
            # In training, timm's distilled model returns both heads' logits.
            outputs = sum(outputs) / 2 if isinstance(outputs, tuple) else logits_of(outputs)
            loss = torch.nn.functional.cross_entropy(outputs.float(), labels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return Subject(run, train, None, "mean")
    model.eval()

    def step(batch=images):
        with torch.inference_mode():
            return call(batch)

    def logits(batch):
        batch = run.place(batch.transpose(0, 3, 1, 2))
        return logits_of(step(batch if mixed else batch.to(dtype))).float().cpu().numpy()

    return Subject(run, step, logits, "mean")


def ceiling(request):
    """The largest matrix product of the model, alone: (batch * tokens, D) by (D, 4 D)."""
    _refuse(request, request.dtype == "int8", "no int8")
    run = framework(request.backend, request.device)
    backbone = backbone_config(request.folder)
    tokens = (backbone["image_shape"][0] // backbone["patch_size"][0]) ** 2
    rows, columns, products = request.batch_size * tokens, backbone["hidden_dim"], backbone["intermediate_dim"]
    dtype = request.dtype.removeprefix("mixed_")
    rng = np.random.default_rng(0)
    first = run.place(rng.normal(size=(rows, columns)).astype("float32"), dtype)
    second = run.place(rng.normal(size=(columns, products)).astype("float32"), dtype)
    call = run.compile(run.matmul, request.jit and request.backend == "jax")
    return Subject(run, lambda: call(first, second), None, None, flops=2 * rows * columns * products)


SUBJECTS = {function.__name__: function for function in (keras_deit, keras_hub, timm, transformers, ceiling)}
PYTORCH_ALONE = ("timm", "transformers")


def backbone_config(folder):
    """Arguments of the `DeiTBackbone` in a case's folder."""
    return json.loads((pathlib.Path(folder) / "keras_deit" / "config.json").read_text())["config"]


def number_of_classes(folder):
    return json.loads((pathlib.Path(folder) / "keras_deit" / "task.json").read_text())["num_classes"]


def _image_size(request):
    return backbone_config(request.folder)["image_shape"][0]


def _labels(request):
    return np.arange(request.batch_size) % number_of_classes(request.folder)


def _images(request, shape):
    return np.random.default_rng(1).normal(size=(request.batch_size, *shape)).astype("float32")


def _input_dtype(request):
    """Half-precision models take their input so; what casts is not measured."""
    return request.dtype.removeprefix("mixed_") if request.dtype != "int8" else "float32"


def _path(request, name):
    return pathlib.Path(request.folder) / name


def _refuse(request, condition, what):
    if condition:
        raise NotSupportedError(f"{request.subject}: {what}")
