"""Models of Keras: this package's, KerasHub's, and one made of keras-cv's layers."""

import numpy as np

from benchmarks.frameworks import framework
from benchmarks.precision import array_dtype, keras_dtype
from benchmarks.subjects.base import (
    Subject,
    backbone_config,
    path,
    random_images,
    random_labels,
    refuse,
)


def keras_deit(request):
    from keras_deit.models import DeiTImageClassifier

    _refuse_int8_without_kernel(request)
    if request.dtype == "int8":
        model = DeiTImageClassifier.from_preset(path(request, "keras_deit"), preprocessor=None)
        model.quantize("int8")
    else:
        dtype = keras_dtype(request.dtype)
        model = DeiTImageClassifier.from_preset(
            path(request, "keras_deit"), preprocessor=None, dtype=dtype
        )
    return _keras_subject(request, model, "mean", lambda: model.outputs_with_attention_scores)


def keras_hub(request):
    import keras_hub

    _refuse_int8_without_kernel(request)
    refuse_what_keras_hub_lacks(request)
    refuse(request, request.mode == "attention", "attention scores cannot be reached")
    dtype = "float32" if request.dtype == "int8" else keras_dtype(request.dtype)
    folder = str(path(request, "transformers"))
    model = keras_hub.models.DeiTImageClassifier.from_preset(folder, dtype=dtype, preprocessor=None)
    if request.dtype == "int8":
        # Its attention can only be quantized after a call.
        model(np.zeros((1, *model.input.shape[1:]), "float32"))
        model.quantize("int8")
    return _keras_subject(request, model, "class")


def refuse_what_keras_hub_lacks(request):
    distilled = request.preset.startswith("deit_") and "_distilled_" in request.preset
    refuse(request, not distilled, "distilled DeiT alone")
    channels = backbone_config(request.folder)["image_shape"][-1]
    refuse(request, channels != 3, "images of three channels alone")


def keras_cv(request):
    """A plain DeiT made of keras-cv's layers, because keras-cv has no DeiT."""
    import keras
    from keras_cv.layers import PatchingAndEmbedding, TransformerEncoder

    from keras_deit.models import DeiTImageClassifier

    ours = DeiTImageClassifier.from_preset(path(request, "keras_deit"), preprocessor=None)
    backbone = ours.backbone
    refuse(request, backbone.use_distillation_token, "no distillation token")
    refuse(request, backbone.layer_scale_init_value is not None, "no LayerScale")
    refuse(request, request.mode == "attention", "attention scores cannot be reached")
    refuse(request, request.dtype == "int8", "its attention is not quantized")
    keras.config.set_dtype_policy(keras_dtype(request.dtype))
    inputs = keras.Input(backbone.image_shape)
    embedding = PatchingAndEmbedding(backbone.hidden_dim, backbone.patch_size[0])
    encoders = [
        TransformerEncoder(
            backbone.hidden_dim,
            backbone.num_heads,
            backbone.intermediate_dim,
            mlp_dropout=0.0,
            attention_dropout=0.0,
            # Given `gelu` itself, it takes the approximate one
            activation=lambda x: keras.activations.gelu(x),
        )
        for _ in backbone.blocks
    ]
    x = embedding(inputs)
    for encoder in encoders:
        x = encoder(x)
    norm = keras.layers.LayerNormalization(epsilon=backbone.layer_norm_epsilon)
    head = keras.layers.Dense(ours.num_classes)
    model = keras.Model(inputs, head(norm(x)[:, 0]))

    kernel, bias = backbone.patch_embedding.projection.get_weights()
    embedding.projection.set_weights([kernel.reshape(embedding.projection.kernel.shape), bias])
    prefix_tokens, positions = backbone.token_position_embedding.get_weights()
    embedding.class_token.assign(prefix_tokens[None])
    embedding.position_embedding.set_weights([positions])
    for encoder, block in zip(encoders, backbone.blocks):
        encoder.layer_norm1.set_weights(block.attention_norm.get_weights())
        encoder.layer_norm2.set_weights(block.mlp_norm.get_weights())
        encoder.dense1.set_weights(block.mlp.intermediate.get_weights())
        encoder.dense2.set_weights(block.mlp.projection.get_weights())
        qkv = [np.split(weight, 3, axis=-1) for weight in block.attention.qkv.get_weights()]
        parts = [
            part for pair in zip(*qkv) for part in pair
        ] + block.attention.projection.get_weights()
        encoder.attn.set_weights(
            [part.reshape(weight.shape) for part, weight in zip(parts, encoder.attn.weights)]
        )
    norm.set_weights(backbone.final_norm.get_weights())
    head.set_weights(ours.head.get_weights())
    return _keras_subject(request, model, "mean")


def _keras_subject(request, model, answers, outputs_with_attention_scores=None):
    import keras

    run = framework(request.backend, request.device, request.dtype)
    images = random_images(request, model.input.shape[1:])
    if request.mode == "training":
        images, labels = run.place(images), run.place(random_labels(request))
        if request.backend == "torch":
            return Subject(
                run, _torch_training(run, model, request.jit, images, labels), None, answers
            )
        optimizer = keras.optimizers.AdamW(1e-5, weight_decay=0.05)
        if request.dtype == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        step = run.keras_training_step(model, optimizer, loss, request.jit, images, labels)
        return Subject(run, step, None, answers)
    if request.mode == "attention":
        model = keras.Model(model.input, outputs_with_attention_scores())
    images = run.place(images, array_dtype(request.dtype))  # so that casting is not measured
    call = run.keras_inference(model, request.jit, images)

    def logits(images):
        outputs = call(run.place(images, array_dtype(request.dtype)))
        outputs = outputs["outputs"] if isinstance(outputs, dict) else outputs
        return np.asarray(keras.ops.convert_to_numpy(outputs), "float32")

    return Subject(run, lambda: call(images), logits, answers)


def _torch_training(run, model, jit, images, labels):
    call = run.keras_training(model, jit, images)

    def loss():
        return run.torch.nn.functional.cross_entropy(call(images).float(), labels)

    return run.training_step([weight.value for weight in model.trainable_weights], loss)


def _refuse_int8_without_kernel(request):
    slow = request.dtype == "int8" and request.backend == "torch" and request.device == "cpu"
    refuse(
        request,
        slow,
        "Keras' int8 has no kernel on PyTorch's CPU (20 times slower than float32 there)",
    )
