"""Models of PyTorch: timm's and transformers'."""

import importlib.util
import sys
import unittest.mock

from benchmarks.frameworks import framework
from benchmarks.precision import array_dtype
from benchmarks.subjects.base import (
    Subject,
    backbone_config,
    image_size,
    path,
    random_images,
    random_labels,
    refuse,
)


def timm(request):
    refuse(request, request.mode == "attention", "does not return attention scores")
    refuse_what_timm_lacks(request)
    model = timm_model(request.folder, request.preset)
    return _torch_subject(request, model, lambda outputs: outputs)


def refuse_what_timm_lacks(request):
    refuse(request, request.preset.endswith("_digits"), "not in its catalog")


def timm_model(folder, preset):
    """timm's model with the weights of a case."""
    from safetensors.torch import load_file

    config = backbone_config(folder)
    model = _import_timm().create_model(
        preset.removesuffix("_in21k"), img_size=config["image_shape"][0], depth=config["num_layers"]
    )
    model.load_state_dict(load_file(f"{folder}/timm.safetensors"))
    return model


def _import_timm():
    """Imports timm, also if torchvision is missing or broken: its models do not need it."""
    names = ("", ".datasets", ".models", ".models.feature_extraction", ".ops", ".ops.misc")
    names += (".transforms", ".transforms.functional")
    if "timm" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        import timm

        return timm
    stand_ins = {
        f"torchvision{name}": unittest.mock.MagicMock(__path__=[], __spec__=None) for name in names
    }
    stand_ins["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (), {})
    sys.modules.update(stand_ins)
    try:
        import timm
    finally:  # PyTorch and transformers also check whether torchvision exists
        for name in stand_ins:
            del sys.modules[name]
    return timm


def transformers(request):
    from transformers import AutoModelForImageClassification, DeiTForImageClassificationWithTeacher

    refuse(request, not path(request, "transformers").exists(), "no DeiT III")
    distilled = "_distilled_" in request.preset
    cls = DeiTForImageClassificationWithTeacher if distilled else AutoModelForImageClassification
    with_scores = request.mode == "attention"
    model = cls.from_pretrained(
        path(request, "transformers"), attn_implementation="eager" if with_scores else "sdpa"
    )
    model.config.output_attentions = with_scores
    return _torch_subject(request, model, lambda outputs: outputs.logits)


def _torch_subject(request, model, logits_of):
    run = framework("torch", request.device, request.dtype)
    torch = run.torch
    refuse(request, request.dtype == "int8", "no int8 in PyTorch here: see timm_openvino")
    mixed = request.dtype.startswith("mixed_")
    dtype = getattr(torch, array_dtype(request.dtype))
    model = model.to(run.device)
    if not mixed:
        model = model.to(dtype)
    size = image_size(request)
    images = run.place(random_images(request, (3, size, size)))
    images = images if mixed else images.to(dtype)

    def forward(images):
        with torch.autocast(run.device, dtype=dtype, enabled=mixed):
            return model(images)

    call = run.compile(forward, request.jit)
    if request.mode == "training":
        model.train()
        labels = run.place(random_labels(request))

        def loss():
            outputs = call(images)
            # In training mode, timm's distilled model returns the logits of both heads.
            outputs = sum(outputs) / 2 if isinstance(outputs, tuple) else logits_of(outputs)
            return torch.nn.functional.cross_entropy(outputs.float(), labels)

        return Subject(run, run.training_step(model.parameters(), loss), None, "mean")
    model.eval()

    def step(batch=images):
        with torch.inference_mode():
            return call(batch)

    def logits(batch):
        batch = run.place(batch.transpose(0, 3, 1, 2))
        return logits_of(step(batch if mixed else batch.to(dtype))).float().cpu().numpy()

    return Subject(run, step, logits, "mean")
