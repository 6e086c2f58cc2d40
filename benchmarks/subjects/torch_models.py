"""Models of PyTorch: timm's and transformers'."""

from benchmarks.frameworks import framework
from benchmarks.subjects.base import Subject, backbone_config, image_size, path, random_images, random_labels, refuse


def timm(request):
    import timm
    from safetensors.torch import load_file

    refuse(request, request.mode == "attention", "does not return attention scores")
    refuse(request, request.preset.endswith("_digits"), "not in its catalog")
    model = timm.create_model(
        request.preset.removesuffix("_in21k"), img_size=image_size(request), depth=backbone_config(request.folder)["num_layers"]
    )
    model.load_state_dict(load_file(path(request, "timm.safetensors")))
    return _torch_subject(request, model, lambda outputs: outputs)


def transformers(request):
    from transformers import AutoModelForImageClassification, DeiTForImageClassificationWithTeacher

    refuse(request, not path(request, "transformers").exists(), "no DeiT III")
    distilled = "_distilled_" in request.preset
    cls = DeiTForImageClassificationWithTeacher if distilled else AutoModelForImageClassification
    with_scores = request.mode == "attention"
    model = cls.from_pretrained(path(request, "transformers"), attn_implementation="eager" if with_scores else "sdpa")
    model.config.output_attentions = with_scores
    return _torch_subject(request, model, lambda outputs: outputs.logits)


def _torch_subject(request, model, logits_of):
    run = framework("torch", request.device)
    torch = run.torch
    refuse(request, request.dtype == "int8", "no int8")
    mixed = request.dtype.startswith("mixed_")
    dtype = getattr(torch, request.dtype.removeprefix("mixed_"))
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
            # In training, timm's distilled model returns both heads' logits.
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
