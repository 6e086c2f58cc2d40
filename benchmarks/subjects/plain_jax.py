"""The same model in plain JAX, to measure what Keras' layers cost.

These are pure functions of `{path of a keras_deit variable: array}`, so this package's weights fit.
Each choice is the best known for a TPU, except for how query, key and value come out of their one
kernel: no form is fastest at every size, so `FORMS` has them all.
"""

import math

import jax
from jax import numpy as jnp

# Three products with slices of the kernel; one product whose output is split; three products whose
# outputs have an axis of heads.
FORMS = ("slices", "split", "heads")


def classify(
    weights,
    images,
    config,
    form="slices",
    dtype="float32",
    training=False,
    return_attention_scores=False,
    attention="xla",
):
    """Computes the logits: for a distilled model, the mean of both heads.

    Args:
        weights: dict, path to array.
        images: array of shape (batch, height, width, channels).
        config: dict, arguments of the `DeiTBackbone`. Dropout, drop path and token merging are not
            supported, because they do not matter for a comparison of compilers.
        form: one of `FORMS`.
        dtype: string, dtype of the computation.
        training: bool. With `remat` in the config, training uses gradient checkpointing.
        return_attention_scores: bool, whether to return `(logits, {"block_0": ...})`.
        attention: `implementation` of `jax.nn.dot_product_attention`, such as `"cudnn"` for an
            NVIDIA GPU.
    """
    weights = {path: array.astype(dtype) for path, array in weights.items()}
    x = _embed(weights, images.astype(dtype), config)  # (B, T, D)
    prefix = 2 if config["use_distillation_token"] else 1
    scores = {}
    for index in range(config["num_layers"]):
        name = f"block_{index}"
        last = index == config["num_layers"] - 1
        of_block = {
            path.removeprefix(f"{name}/"): array
            for path, array in weights.items()
            if path.startswith(f"{name}/")
        }

        def block(weights, x, queries=prefix if last else None):
            return _block(weights, x, config, form, queries, return_attention_scores, attention)

        if config["remat"] and training:
            block = jax.checkpoint(block)
        with jax.named_scope(name):
            x, scores[name] = block(of_block, x)
    with jax.named_scope("final_norm"):
        x = _norm(weights, "final_norm", x[:, :prefix], config)
    with jax.named_scope("head"):
        if "head/kernel" in weights:
            logits = _dense(weights, "head", x[:, 0])
        else:
            logits = (
                _dense(weights, "head/class_head", x[:, 0])
                + _dense(weights, "head/distillation_head", x[:, 1])
            ) / 2
    return (logits, scores) if return_attention_scores else logits


def _embed(weights, images, config):
    height, width = config["patch_size"]
    dim = config["hidden_dim"]
    with jax.named_scope("patch_embedding"):
        kernel = weights["patch_embedding/projection/kernel"].reshape(
            height, width, images.shape[-1], dim
        )
        x = jax.lax.conv_general_dilated(
            images, kernel, (height, width), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = x.reshape(len(images), -1, dim) + weights["patch_embedding/projection/bias"]
    with jax.named_scope("token_position_embedding"):
        tokens, positions = (
            weights[f"token_position_embedding/{name}"] for name in ("prefix_tokens", "positions")
        )
        tokens = jnp.broadcast_to(tokens, (len(images), *tokens.shape))
        if config["position_scope"] == "patches":
            return jnp.concatenate([tokens, x + positions], axis=1)
        return jnp.concatenate([tokens, x], axis=1) + positions


def _block(weights, x, config, form, queries, return_attention_scores, attention):
    """Returns (tokens after the block, attention scores or `None`).

    Only the first `queries` tokens are computed, if given; scores are always complete.
    """
    kept = x if queries is None else x[:, :queries]
    with jax.named_scope("attention_norm"):
        y = _norm(weights, "attention_norm", x, config)
    with jax.named_scope("attention"):
        all_queries = queries is None or return_attention_scores
        y, scores = _attend(
            weights,
            y,
            config,
            form,
            None if all_queries else queries,
            return_attention_scores,
            attention,
        )
        y = y if queries is None else y[:, :queries]
    x = kept + _scaled(weights, "attention_scale", y)
    with jax.named_scope("mlp_norm"):
        y = _norm(weights, "mlp_norm", x, config)
    with jax.named_scope("mlp"):
        y = _dense(weights, "mlp/intermediate", y)
        y = 0.5 * y * (1.0 + jax.lax.erf(y / math.sqrt(2.0)))
        y = _dense(weights, "mlp/projection", y)
    return x + _scaled(weights, "mlp_scale", y), scores


def _attend(weights, x, config, form, queries, return_attention_scores, attention):
    heads, dim = config["num_heads"], config["hidden_dim"]
    kernel, bias = weights["attention/qkv/kernel"], weights["attention/qkv/bias"]
    sources = (x if queries is None else x[:, :queries], x, x)  # inputs of query, key, value
    if form == "split":
        parts = jnp.split(x @ kernel + bias, 3, axis=-1)
        parts[0] = parts[0] if queries is None else parts[0][:, :queries]
    elif form == "slices":
        parts = [
            source @ part + offset
            for source, part, offset in zip(
                sources, jnp.split(kernel, 3, axis=1), jnp.split(bias, 3)
            )
        ]
    else:
        parts = [
            jnp.einsum("btd,dhk->bthk", source, part.reshape(dim, heads, -1))
            + offset.reshape(heads, -1)
            for source, part, offset in zip(
                sources, jnp.split(kernel, 3, axis=1), jnp.split(bias, 3)
            )
        ]
    # (B, T, heads, head_dim)
    query, key, value = (part.reshape(*part.shape[:2], heads, dim // heads) for part in parts)
    scores = None
    if return_attention_scores:
        logits = jnp.einsum("bqhd,bkhd->bhqk", query / math.sqrt(dim // heads), key).astype(
            "float32"
        )
        scores = jax.nn.softmax(logits).astype(x.dtype)
        x = jnp.einsum("bhqk,bkhd->bqhd", scores, value)
    else:
        x = jax.nn.dot_product_attention(query, key, value, implementation=attention)
    return _dense(weights, "attention/projection", x.reshape(*x.shape[:2], dim)), scores


def _norm(weights, name, x, config):
    """LayerNorm in one pass over the tokens: means of values and squares, in float32."""
    wide = x.astype("float32")
    mean = wide.mean(axis=-1, keepdims=True)
    variance = jnp.maximum((wide * wide).mean(axis=-1, keepdims=True) - mean * mean, 0.0)
    factor = weights[f"{name}/gamma"].astype("float32") * jax.lax.rsqrt(
        variance + config["layer_norm_epsilon"]
    )
    return ((wide - mean) * factor + weights[f"{name}/beta"].astype("float32")).astype(x.dtype)


def _dense(weights, name, x):
    return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]


def _scaled(weights, name, x):
    gamma = weights.get(f"{name}/gamma")
    return x if gamma is None else x * gamma
