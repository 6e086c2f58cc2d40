"""The layers' computations that depend on the backend or the device.

Each function has several equivalent implementations and picks the fastest one for the device. The
measurements behind the choices are in the docstrings and in benchmarks/LOG.md.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_deit.arguments import check_choice

PLATFORMS = ("cpu", "gpu", "tpu")
# Limits for float32 attention scores, in bytes. A TPU v5e or v6e has 128 MiB of on-chip memory.
ALL_SCORES = 120 * 2**20  # up to here, all scores stay on the chip
SCORES_AT_A_TIME = 48 * 2**20  # beyond, for each chunk: leaves room for queries, keys and values
_BACKEND = keras.backend.backend()
_target: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "target_platform", default=None
)


@contextlib.contextmanager
def target_platform(platform: str) -> Iterator[None]:
    """Makes layers trace for a kind of device, even if this machine has none.

    Layers choose between equivalent implementations by device: the device of the tensor, or the
    first device of `keras.distribution` or of the machine. Use this scope to compile for another
    one, such as a TPU on a machine without one, or the CPU of a machine with a GPU. Results agree
    up to rounding.

    Args:
        platform: `"cpu"`, `"gpu"` or `"tpu"`.

    Raises:
        ValueError: if `platform` is none of these.

    Example:

    >>> with keras_deit.layers.target_platform("tpu"):
    ...     block = TransformerBlock(num_heads=4, intermediate_dim=256)
    ...     outputs = block(keras.random.uniform((2, 6, 64)))
    """
    check_choice("platform", platform, PLATFORMS)
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)


def _platform(tensor):
    if _target.get() is not None:
        return _target.get()
    if _BACKEND == "torch":
        return _named(tensor.device.type)
    try:
        # A concrete JAX array
        return _named(next(iter(tensor.devices())).platform)
    except (AttributeError, TypeError):  # a JAX tracer, or TensorFlow
        distribution = keras.distribution.distribution()
        devices = (
            keras.distribution.list_devices()
            if distribution is None
            else distribution.device_mesh.devices.flat
        )
        return _named(devices[0].split(":")[0])


def _named(kind):
    return "gpu" if kind in ("cuda", "rocm", "gpu") else kind


def _is_for(platforms, tensor):
    """Whether the backend is JAX, where implementations depend on the device, and the device is one
    of `platforms`.
    """
    return _BACKEND == "jax" and _platform(tensor) in platforms


@keras.saving.register_keras_serializable(package="keras_deit")
def gelu(x: Any) -> Any:
    """The exact GELU, `0.5 * x * (1 + erf(x / sqrt(2)))`.

    Equal to `keras.activations.gelu(x)`, which uses `Erfc` on TensorFlow, an operator that ONNX
    Runtime does not have.

    Reference: [Hendrycks & Gimpel, 2016](https://arxiv.org/abs/1606.08415).
    """
    if _BACKEND == "torch":  # one kernel instead of four in eager mode
        return ops.gelu(x, approximate=False)
    return 0.5 * x * (1.0 + ops.erf(x / math.sqrt(2.0)))


@keras.saving.register_keras_serializable(package="keras_deit")
def gelu_tanh(x: Any) -> Any:
    """The approximation of GELU by `tanh`, as SigLIP's largest models use it.

    `0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))`. As an `activation`, it is saved
    and loaded by its name.

    Reference: [Hendrycks & Gimpel, 2016](https://arxiv.org/abs/1606.08415).
    """
    return ops.gelu(x, approximate=True)


@keras.saving.register_keras_serializable(package="keras_deit")
def quick_gelu(x: Any) -> Any:
    """The approximation of GELU by a sigmoid, as OpenAI's CLIP uses it: `x * sigmoid(1.702 * x)`.

    As an `activation`, it is saved and loaded by its name.

    Reference: [Hendrycks & Gimpel, 2016](https://arxiv.org/abs/1606.08415).
    """
    return x * ops.sigmoid(1.702 * x)


def dense(layer, tokens):
    """Returns `layer(tokens)`, (B, T, D), computed with the rank that the backend fuses best.

    TensorFlow fuses product, bias and activation only for rank 2. With rank 3, XLA's CPU compiler
    transposes the gradient of the outputs, and recomputes the sum of all later residual gradients
    in each block. PyTorch prefers rank 3: for rank 2 its compiler uses `addmm`, which first copies
    the bias into every row.
    """
    if _BACKEND == "torch" or _is_for(("gpu", "tpu"), tokens):
        return layer(tokens)
    shape = ops.shape(tokens)
    outputs = layer(ops.reshape(tokens, (-1, shape[-1])))
    return ops.reshape(outputs, (-1, *shape[1:-1], outputs.shape[-1]))


def layer_norm(layer, tokens):
    """Returns `layer(tokens)` for a `LayerNormalization` of the last axis.

    On an accelerator, half precision uses one pass, `variance = mean(x * x) - mean(x) ** 2` in
    float32. XLA fuses its sums with the computation of the tokens, which saves 12% of a model's
    cycles (estimate of the TPU compiler). The subtraction loses precision for a mean much larger
    than the standard deviation, but rounding to half precision loses more
    (tests/layers/test_kernels.py). float32 uses Keras' two passes.
    """
    if (
        not _is_for(("gpu", "tpu"), tokens)
        or keras.backend.standardize_dtype(tokens.dtype) == "float32"
    ):
        return layer(tokens)
    x = ops.cast(tokens, "float32")
    mean = ops.mean(x, axis=-1, keepdims=True)
    variance = ops.maximum(ops.mean(x * x, axis=-1, keepdims=True) - mean * mean, 0.0)
    x = (x - mean) * (ops.rsqrt(variance + layer.epsilon) * layer.gamma) + layer.beta
    return ops.cast(x, layer.compute_dtype)


def embed_patches(layer, images, patch_size, flatten):
    """Applies `layer` to each patch: (B, H, W, C) to (B, rows, columns, D), or with `flatten` to
    (B, rows * columns, D).
    """
    batch, height, width, channels = ops.shape(images)
    patch_height, patch_width = patch_size
    rows, columns = height // patch_height, width // patch_width
    grid = (rows * columns,) if flatten else (rows, columns)
    if _is_for(("gpu", "tpu"), images) and layer.quantization_mode is None:
        # The product reads each patch in place, without a copy of the image in rows of patches. (A
        # convolution takes as many cycles for 128 images of 224 pixels, and 5 times as many for 8.)
        x = ops.reshape(images, (batch, rows, patch_height, columns, patch_width, channels))
        kernel = ops.reshape(layer.kernel, (patch_height, patch_width, channels, -1))
        x = ops.einsum(
            "brpcqk,pqkd->brcd",
            ops.cast(x, layer.compute_dtype),
            ops.cast(kernel, layer.compute_dtype),
        )
        x = ops.reshape(x, (batch, *grid, -1))
        return x if layer.bias is None else x + ops.cast(layer.bias, layer.compute_dtype)
    # Rank 4 throughout, because mobile delegates refuse the usual reshape to rank 6.
    # (B * rows, ph, columns, pw * C)
    x = ops.reshape(images, (-1, patch_height, columns, patch_width * channels))
    x = ops.transpose(x, (0, 2, 1, 3))  # (B * rows, columns, ph, pw * C)
    # (B * rows * columns, D)
    x = layer(ops.reshape(x, (-1, patch_height * patch_width * channels)))
    # Not -1 for the batch: it would hide that the patch size does not divide an image.
    return ops.reshape(x, (batch, *grid, x.shape[-1]))


def query_key_value(layer, tokens, num_heads, num_queries=None, norms=()):
    """Applies the fused projection `layer` and splits it into heads.

    Args:
        norms: the LayerNormalizations of queries and of keys, or empty.

    Returns:
        Query (B, Q, heads, head_dim) of the first tokens; key and value (B, T, heads, head_dim).
    """
    if _is_for(("tpu",), tokens) and layer.quantization_mode is None:
        # Three products with slices of the kernel, because slicing the result of one product copies
        # it on a TPU. This bypasses the layer's call: `kernel` includes LoRA, and quantized layers
        # take the other path.
        kernels = ops.split(ops.cast(layer.kernel, tokens.dtype), 3, axis=-1)
        biases = (
            (0.0, 0.0, 0.0)
            if layer.bias is None
            else ops.split(ops.cast(layer.bias, tokens.dtype), 3)
        )
        # For query, key and value
        sources = (tokens if num_queries is None else tokens[:, :num_queries], tokens, tokens)
        parts = (
            ops.matmul(source, kernel) + bias
            for source, kernel, bias in zip(sources, kernels, biases)
        )
        if norms and keras.backend.standardize_dtype(tokens.dtype) != "float32":
            parts = (
                part if norm is None else _norm_of_heads(norm, part, num_heads)
                for norm, part in zip((*norms, None), parts)
            )
            norms = ()
        query, key, value = (_apart(part, num_heads) for part in parts)
        return _normalised(norms, query, key, value)
    # The gradient of `split` is one concatenation; the gradient of indexing is a sum of padded
    # tensors.
    query, key, value = (_apart(x, num_heads) for x in ops.split(dense(layer, tokens), 3, axis=-1))
    query = query if num_queries is None else query[:, :num_queries]
    return _normalised(norms, query, key, value)


def _normalised(norms, query, key, value):
    if norms:
        query, key = (layer_norm(norm, x) for norm, x in zip(norms, (query, key)))
    return query, key, value


def _norm_of_heads(layer, x, num_heads):
    """Returns `layer_norm` of each head of (B, T, heads * head_dim), in that shape.

    Products with a matrix of zeros and ones take the means of the heads and spread them again. On a
    TPU, arrays whose last axis is `head_dim` fill half of each register: this saves 37% of the
    cycles of DeiT-S with `use_qk_norm`, from 47.7 to 30.2 million at batch 128 (estimates of the
    compiler). For half precision only, to which a TPU may round what the products spread.
    """
    dim = x.shape[-1]
    head_dim = dim // num_heads
    # (D, heads): which values belong to a head
    heads = ops.cast(ops.arange(dim)[:, None] // head_dim == ops.arange(num_heads)[None], "float32")
    x = ops.cast(x, "float32")
    mean = ops.matmul(x, heads) / head_dim  # (B, T, heads)
    variance = ops.maximum(ops.matmul(x * x, heads) / head_dim - mean * mean, 0.0)
    scale = ops.rsqrt(variance + layer.epsilon)
    spread = ops.transpose(heads)  # (heads, D)
    scale, shift = ops.matmul(scale, spread), ops.matmul(-mean * scale, spread)  # (B, T, D)
    gamma, beta = (ops.tile(weight, num_heads) for weight in (layer.gamma, layer.beta))
    return ops.cast((x * scale + shift) * gamma + beta, layer.compute_dtype)


def _apart(x, num_heads):
    """(B, T, heads * head_dim) to (B, T, heads, head_dim)."""
    return ops.reshape(x, (-1, ops.shape(x)[1], num_heads, x.shape[-1] // num_heads))


def rotate(x, rotation):
    """Rotates pairs of values, (B, T, heads, head_dim), by angles given as (2, T, head_dim / 2):
    their cosines and sines. Value i forms a pair with value i + head_dim / 2.
    """
    cosines, sines = (ops.cast(rotation[index], x.dtype)[:, None, :] for index in range(2))
    first, second = ops.split(x, 2, axis=-1)
    return ops.concatenate(
        [first * cosines - second * sines, second * cosines + first * sines], axis=-1
    )


def self_attention(heads, tokens, num_heads, num_queries, training):
    """Returns `attention` of `heads(tokens)`, which are query, key and value: (B, Q, D).

    On a TPU, images are processed in chunks if their scores do not fit into on-chip memory. Without
    chunks, the compiler for a v5e moves scores, queries and keys to main memory and back: three
    blocks of DeiT-S at batch 512 take 45 million cycles, and 25 million in 16 chunks. Where all
    scores fit (DeiT-S at batch 128), chunks cost 10% or more. (Estimates of the compiler.)
    """

    def attend(tokens):
        x = attention(*heads(tokens), None, training)
        _, queries, count, head_dim = ops.shape(x)
        return ops.reshape(x, (-1, queries, count * head_dim))

    shards, chunks = _shards_and_chunks(tokens, num_heads) if num_queries is None else (1, 1)
    if chunks == 1:
        return attend(tokens)
    batch, count, dim = tokens.shape
    images = batch // (shards * chunks)
    # Each chunk has images of every device, so that no image moves between devices
    x = ops.reshape(tokens, (shards, chunks, images, count, dim))

    def attend_chunk(chunk):  # (shards, images, T, D)
        return ops.reshape(attend(ops.reshape(chunk, (shards * images, count, dim))), chunk.shape)

    if training:
        # Recomputes each chunk in the backward pass, so that the scores of all chunks are never in
        # memory at once.
        x = ops.moveaxis(ops.map(keras.remat(attend_chunk), ops.moveaxis(x, 1, 0)), 0, 1)
    else:
        # Overwrites the tokens, because a new array would be filled with zeros first. (Not in
        # training: the gradient would keep all tokens for each chunk.)
        def replace(index, x):
            start = (0, index, 0, 0, 0)
            chunk = ops.squeeze(ops.slice(x, start, (shards, 1, images, count, dim)), axis=1)
            return ops.slice_update(x, start, ops.expand_dims(attend_chunk(chunk), axis=1))

        x = ops.fori_loop(0, chunks, replace, x)
    return ops.reshape(x, tokens.shape)


def _shards_and_chunks(tokens, num_heads):
    """(devices that the batch may be split over, chunks whose scores fit on each device's chip)."""
    batch, count, _ = tokens.shape
    if not (_is_for(("tpu",), tokens) and isinstance(batch, int) and count):
        return 1, 1
    distribution = keras.distribution.distribution()
    if distribution is None:  # the batch may be split by `jax.sharding`, or not at all
        shards, known = len(keras.distribution.list_devices()), 1
    else:
        mesh = distribution.device_mesh
        shards = known = mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)]
    if batch % shards:
        shards = 1
    scores = 4 * batch * num_heads * count * count / known  # bytes on each device
    if scores <= ALL_SCORES:
        return shards, 1
    divisors = [chunks for chunks in range(1, batch // shards + 1) if batch // shards % chunks == 0]
    return shards, next(
        (chunks for chunks in divisors if scores / chunks <= SCORES_AT_A_TIME), divisors[-1]
    )


def copies_rows_one_by_one(tensor):
    """Whether a strided slice, `tensor[:, ::2]`, costs more than computing with all rows."""
    return _is_for(("tpu",), tensor)


def best_of_each_row(similarity):
    """The maximum of each row of (B, S, T) and its index, each (B, S)."""
    if _is_for(("gpu", "tpu"), similarity):
        return ops.max(similarity, axis=-1), ops.argmax(similarity, axis=-1)
    # Not every runtime for exported models has `argmax`.
    return tuple(ops.squeeze(found, axis=-1) for found in ops.top_k(similarity, 1))


def attention(query, key, value, bias, training):
    """Returns `softmax(query @ key.T / sqrt(head_dim) + bias) @ value`, (B, Q, heads, head_dim).

    Uses the backend's fused attention where it is faster.
    """
    if not _has_fused_attention(query, training):
        return attention_and_scores(query, key, value, bias)[0]
    if _BACKEND == "jax":
        # On a TPU, Keras 3.15 would by default use a kernel that is causal, ignores the bias and
        # does not scale the queries.
        flash_attention = None if _platform(query) == "gpu" else False
        # cuDNN does not broadcast the bias over queries
        if bias is not None and flash_attention is None:
            bias = ops.broadcast_to(bias, (*bias.shape[:2], query.shape[1], bias.shape[3]))
    else:
        # On PyTorch, Keras' check for flash attention breaks `torch.compile`, and PyTorch chooses
        # the kernel itself.
        flash_attention = False if _BACKEND == "torch" else None
    return ops.dot_product_attention(query, key, value, bias=bias, flash_attention=flash_attention)


def _has_fused_attention(query, training):
    """Whether the backend has fused attention that is faster than `attention_and_scores`.

    On a CPU, JAX has none: its substitute is slower and refuses float16. PyTorch's has a slow
    gradient in half precision on a CPU.
    """
    if _BACKEND == "jax":
        return _platform(query) != "cpu"
    if _BACKEND == "torch":
        half = keras.backend.standardize_dtype(query.dtype) in ("bfloat16", "float16")
        return not (training and half and _platform(query) == "cpu")
    return True


def attention_and_scores(query, key, value, bias, dropout=lambda scores: scores):
    """The computation of `attention` step by step.

    Returns:
        `(outputs, scores)`, with scores (B, heads, Q, T) after the softmax and before `dropout`.
    """
    scores = attention_scores(query, key, bias)
    if _multiplies_in_place(query):
        return ops.einsum("bhqk,bkhd->bqhd", dropout(scores), value), scores
    # (B, heads, Q, head_dim)
    x = ops.matmul(dropout(scores), ops.transpose(value, (0, 2, 1, 3)))
    return ops.transpose(x, (0, 2, 1, 3)), scores


def attention_scores(query, key, bias=None):
    """Returns `softmax(query @ key.T / sqrt(head_dim) + bias)`, (B, heads, Q, T)."""
    dtype, scale = query.dtype, math.sqrt(query.shape[-1])
    # Scales the query rather than the product, which could overflow in float16.
    if _multiplies_in_place(query):
        logits = ops.einsum(
            "bqhd,bkhd->bhqk", ops.cast(query / scale, "float32"), ops.cast(key, "float32")
        )
    else:
        query = ops.transpose(query, (0, 2, 1, 3))
        logits = ops.matmul(query / scale, ops.transpose(key, (0, 2, 3, 1)))  # (B, heads, Q, T)
    # The softmax sums over hundreds of tokens, which needs float32. PyTorch's uses float32 for any
    # input.
    if _BACKEND != "torch":
        logits = ops.cast(logits, keras.backend.result_type(logits.dtype, "float32"))
    if bias is not None:
        logits = logits + ops.cast(bias, logits.dtype)
    if logits.shape[-1] == 1:  # for which Keras' softmax has a warning
        return ops.cast(ops.ones_like(logits), dtype)
    return ops.cast(ops.softmax(logits, axis=-1), dtype)


def _multiplies_in_place(query):
    """Whether products take any order of axes, and a transpose would be a copy."""
    return _is_for(("tpu",), query)
