"""Measures which parts of a forward pass take the time.

    KERAS_BACKEND=tensorflow python -m benchmarks.parts --dtype float32 --batch_size 8 \\
        --preset deit_small_distilled_patch16_224

Each part of a block runs alone with the model's shapes, in turns with the other parts and the whole
model. Its share is its time, times how often the model contains it, divided by the time of the
whole. The rest is what compiling the whole model costs, or saves if it is negative.
"""

import time

import keras
import numpy as np
from absl import app, flags

from benchmarks.flops import forward_flops
from benchmarks.frameworks import framework
from keras_deit.models import DeiTImageClassifier

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "preset",
    "deit_small_distilled_patch16_224",
    "Name of a published preset; its weights are not needed.",
)
flags.DEFINE_string("dtype", "float32", "Keras dtype policy.")
flags.DEFINE_integer("batch_size", 8, "Number of images per step.", lower_bound=1)
flags.DEFINE_bool("jit", True, "Whether to compile with XLA or torch.compile.")
flags.DEFINE_enum("device", "cpu", ["cpu", "gpu", "tpu"], "Device to run on.")
flags.DEFINE_integer("rounds", 20, "Number of turns.", lower_bound=1)


def parts(classifier, batch_size):
    """{part: (number of them in the model, Keras model, input shape, FLOPs)}"""
    backbone = classifier.backbone
    block = backbone.blocks[0]
    tokens = backbone.grid_size[0] * backbone.grid_size[1] + backbone.num_prefix_tokens
    rows, dim, layers = batch_size * tokens, backbone.hidden_dim, backbone.num_layers
    sequence, flat, wide = (batch_size, tokens, dim), (rows, dim), (rows, backbone.intermediate_dim)
    product = 2 * rows * dim
    return {
        "whole model": (1, classifier, (batch_size, *backbone.image_shape), None),
        "patch embedding": (1, backbone.patch_embedding, (batch_size, *backbone.image_shape), None),
        "prefix tokens and positions": (
            1,
            backbone.token_position_embedding,
            (batch_size, tokens - backbone.num_prefix_tokens, dim),
            0,
        ),
        "LayerNorm": (2 * layers + 1, block.mlp_norm, sequence, 0),
        "query, key, value": (layers, block.attention.qkv, flat, 3 * product * dim),
        "attention, with its products": (layers, block.attention, sequence, None),
        "attention, projection": (layers, block.attention.projection, flat, product * dim),
        "MLP, first product and GELU": (layers, block.mlp.intermediate, flat, product * wide[1]),
        "MLP, second product": (layers, block.mlp.projection, wide, product * wide[1]),
        "sum with the residual": (2 * layers, keras.layers.Add(dtype=FLAGS.dtype), sequence, 0),
    }


def as_model(part, shape):
    if isinstance(part, keras.Model):
        return part
    inputs = keras.Input(batch_shape=shape, dtype=part.compute_dtype)
    return keras.Model(
        inputs, part([inputs, inputs] if isinstance(part, keras.layers.Add) else inputs)
    )


def main(_):
    run = framework(keras.backend.backend(), FLAGS.device)
    classifier = DeiTImageClassifier.from_preset(
        FLAGS.preset, load_weights=False, preprocessor=None, dtype=FLAGS.dtype
    )
    listed = parts(classifier, FLAGS.batch_size)
    rng = np.random.default_rng(0)
    steps, seconds = {}, {name: [] for name in listed}
    for name, (_, part, shape, _) in listed.items():
        model = as_model(part, shape)
        inputs = run.place(rng.normal(size=shape).astype("float32"), classifier.compute_dtype)
        call = run.keras_inference(model, FLAGS.jit, inputs)
        steps[name] = lambda call=call, inputs=inputs: call(inputs)
        run.wait(steps[name]())
    for _ in range(FLAGS.rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            run.wait(step())
            seconds[name].append(time.perf_counter() - started)
    print(
        report(
            listed, {name: float(np.median(values)) for name, values in seconds.items()}, classifier
        )
    )


def report(listed, medians, classifier):
    whole = medians["whole model"]
    flops = FLAGS.batch_size * forward_flops(
        classifier.backbone.get_config(), classifier.num_classes, len(classifier.token_logits)
    )
    lines = ["| part | times | ms | share | GFLOP/s |", "| --- | --- | --- | --- | --- |"]
    lines.append(f"| whole model | 1 | {1000 * whole:.1f} | 1.00 | {flops / whole / 1e9:.0f} |")
    spent = {name: count * medians[name] for name, (count, *_) in listed.items()}
    spent["attention, with its products"] -= (
        spent["query, key, value"] + spent["attention, projection"]
    )
    for name, (count, _, _, part_flops) in list(listed.items())[1:]:
        shown = (
            "attention, between its products" if name == "attention, with its products" else name
        )
        rate = f"{count * part_flops / spent[name] / 1e9:.0f}" if part_flops else ""
        lines.append(
            f"| {shown} | {count} | {1000 * spent[name]:.1f} | {spent[name] / whole:.2f} | {rate} |"
        )
    rest = 2 * whole - sum(spent.values())  # `spent` includes the whole
    lines.append(f"| the whole less its parts | | {1000 * rest:.1f} | {rest / whole:.2f} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
