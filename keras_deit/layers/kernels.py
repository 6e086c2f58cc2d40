"""Everything that depends on the backend, or on the device that a computation is for.

The same numbers, in the form that each compiler runs fastest. The figures are beside the choices
and in benchmarks/LOG.md.
"""

import contextlib
import contextvars
import math

import keras
from keras import ops

PLATFORMS = ("cpu", "gpu", "tpu")
# Bytes of float32 attention scores. A TPU's chip (v5e, v6e) has 128 MiB of memory.
ALL_SCORES = 120 * 2**20  # that stay on the chip together
SCORES_AT_A_TIME = 48 * 2**20  # where all do not: with room for queries, keys and values
_BACKEND = keras.backend.backend()
_target = contextvars.ContextVar("target_platform", default=None)


@contextlib.contextmanager
def target_platform(platform):
    """Traces for a kind of device that need not be there.

    Layers choose between equal forms of one computation by the device that it is for: that of the
    tensor, where it has one, or the first of the `keras.distribution`, or of the machine. Say which
    where none of these is right: to compile for a TPU on a host without one, or for the CPU of a
    host with a GPU. The numbers do not depend on it.

    Args:
        platform: `"cpu"`, `"gpu"` or `"tpu"`.

    Raises:
        ValueError: any other platform.

    Example:

    >>> with keras_deit.layers.target_platform("tpu"):
    ...     outputs = TransformerBlock(num_heads=4, intermediate_dim=256)(keras.random.uniform((2, 6, 64)))
    """
    if platform not in PLATFORMS:
        raise ValueError(
            f"`platform` must be one of 'cpu', 'gpu', 'tpu'. Received: platform={platform!r}"
        )
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
        # An array of JAX that has been computed
        return _named(next(iter(tensor.devices())).platform)
    except (AttributeError, TypeError):  # while JAX traces, and on TensorFlow
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
    """Whether JAX computes with this tensor for one of these platforms: the backend whose forms
    depend on the device.
    """
    return _BACKEND == "jax" and _platform(tensor) in platforms


@keras.saving.register_keras_serializable(package="keras_deit")
def gelu(x):
    """The exact GELU, `0.5 * x * (1 + erf(x / sqrt(2)))`.

    Equal to `keras.activations.gelu(x)`, which on TensorFlow is written with `Erfc`, an operator
    that ONNX Runtime refuses.

    Reference: [Hendrycks & Gimpel, 2016](https://arxiv.org/abs/1606.08415).
    """
    if _BACKEND == "torch":  # eager: one kernel instead of four
        return ops.gelu(x, approximate=False)
    return 0.5 * x * (1.0 + ops.erf(x / math.sqrt(2.0)))


def dense(layer, tokens):
    """`layer(tokens)`, (B, T, D), in the shape that the backend fuses best with what follows.

    TensorFlow fuses product, bias and activation on (batch * tokens, width) alone. On JAX, XLA's
    CPU compiler transposes the gradient of outputs with three axes, and puts the sum of all later
    residuals' gradients into that, again in each block. PyTorch's compiler makes product and bias
    one `addmm` on two axes, which first copies the bias into every row; on three it fuses the bias
    with what follows.
    """
    if _BACKEND == "torch" or _is_for(("gpu", "tpu"), tokens):
        return layer(tokens)
    shape = ops.shape(tokens)
    outputs = layer(ops.reshape(tokens, (-1, shape[-1])))
    return ops.reshape(outputs, (-1, *shape[1:-1], outputs.shape[-1]))


def layer_norm(layer, tokens):
    """`layer(tokens)`, a `LayerNormalization` of the last axis.

    On an accelerator half precision takes one pass, `variance = mean(x * x) - mean(x) ** 2` in
    float32, whose sums XLA computes where the tokens are made: 12% fewer cycles of a model (TPU's
    compiler). The difference loses digits where the mean is large beside the standard deviation;
    half precision has lost far more of them by then (tests/layers/test_kernels.py). float32 takes
    Keras' two passes.
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


def embed_patches(layer, images, patch_size):
    """`layer` of each patch, its pixels in a row: images (B, H, W, C) to (B, T, D), patches in
    row-major order.
    """
    batch, height, width, channels = ops.shape(images)
    patch_height, patch_width = patch_size
    rows, columns = height // patch_height, width // patch_width
    if _is_for(("gpu", "tpu"), images) and layer.quantization_mode is None:
        # The product sums over the patch where it lies in the image: no copy with a row for each
        # patch is made. (A convolution is alike for 128 images of 224 pixels, and takes five times
        # the cycles for 8.)
        x = ops.reshape(images, (batch, rows, patch_height, columns, patch_width, channels))
        kernel = ops.reshape(layer.kernel, (patch_height, patch_width, channels, -1))
        x = ops.einsum(
            "brpcqk,pqkd->brcd",
            ops.cast(x, layer.compute_dtype),
            ops.cast(kernel, layer.compute_dtype),
        )
        return ops.reshape(x, (batch, rows * columns, -1)) + ops.cast(
            layer.bias, layer.compute_dtype
        )
    # Rank 4 throughout: mobile delegates refuse the usual rank 6 reshape.
    # (B * rows, ph, columns, pw * C)
    x = ops.reshape(images, (-1, patch_height, columns, patch_width * channels))
    x = ops.transpose(x, (0, 2, 1, 3))  # (B * rows, columns, ph, pw * C)
    # (B * rows * columns, D)
    x = layer(ops.reshape(x, (-1, patch_height * patch_width * channels)))
    # With -1 for the batch, an image that the patch size does not divide would make another batch.
    return ops.reshape(x, (batch, rows * columns, x.shape[-1]))


def query_key_value(layer, tokens, num_heads, num_queries=None):
    """The fused product, apart: query (B, Q, heads, head_dim) of the first tokens, key and value
    (B, T, heads, head_dim) of all.
    """
    if _is_for(("tpu",), tokens) and layer.quantization_mode is None:
        # Products over slices of the one kernel: on a TPU slices of one product's outcome would be
        # copies of it. The layer is not called: its `kernel` has what LoRA adds, and a quantized
        # layer goes the other way.
        kernels = ops.split(ops.cast(layer.kernel, tokens.dtype), 3, axis=-1)
        biases = (
            (0.0, 0.0, 0.0)
            if layer.bias is None
            else ops.split(ops.cast(layer.bias, tokens.dtype), 3)
        )
        # Of query, key, value
        sources = (tokens if num_queries is None else tokens[:, :num_queries], tokens, tokens)
        parts = (
            ops.matmul(source, kernel) + bias
            for source, kernel, bias in zip(sources, kernels, biases)
        )
        return tuple(_apart(part, num_heads) for part in parts)
    # `split` keeps the gradient of the fused product one concatenation, where indexing makes it a
    # padded sum.
    query, key, value = (_apart(x, num_heads) for x in ops.split(dense(layer, tokens), 3, axis=-1))
    return (query if num_queries is None else query[:, :num_queries]), key, value


def _apart(x, num_heads):
    """(B, T, heads * head_dim) to (B, T, heads, head_dim)."""
    return ops.reshape(x, (-1, ops.shape(x)[1], num_heads, x.shape[-1] // num_heads))


def self_attention(layer, tokens, num_heads, num_queries, training):
    """`attention` of what `query_key_value` gives, (B, Q, D); on a TPU some images at a time, where
    not all scores fit on the chip.

    All at once, a v5e's compiler sends scores, queries and keys to memory and back, in another
    order of axes: three blocks of small at batch 512 take 45 million cycles, and 25 in 16 chunks.
    Where all scores fit (small at 128), chunks would cost 10% and more.
    """

    def attend(tokens):
        x = attention(*query_key_value(layer, tokens, num_heads, num_queries), None, training)
        _, queries, heads, head_dim = ops.shape(x)
        return ops.reshape(x, (-1, queries, heads * head_dim))

    shards, chunks = _shards_and_chunks(tokens, num_heads) if num_queries is None else (1, 1)
    if chunks == 1:
        return attend(tokens)
    batch, count, dim = tokens.shape
    images = batch // (shards * chunks)
    # Each chunk has images of each device, so none moves
    x = ops.reshape(tokens, (shards, chunks, images, count, dim))

    def attend_chunk(chunk):  # (shards, images, T, D)
        return ops.reshape(attend(ops.reshape(chunk, (shards * images, count, dim))), chunk.shape)

    if training:
        # The way back computes a chunk again, from its tokens: the scores of all chunks never are
        # in memory together.
        x = ops.moveaxis(ops.map(keras.remat(attend_chunk), ops.moveaxis(x, 1, 0)), 0, 1)
    else:
        # In the place of the tokens: a new array would be filled with zeros first. (A gradient
        # would keep all tokens for each chunk.)
        def replace(index, x):
            start = (0, index, 0, 0, 0)
            chunk = ops.squeeze(ops.slice(x, start, (shards, 1, images, count, dim)), axis=1)
            return ops.slice_update(x, start, ops.expand_dims(attend_chunk(chunk), axis=1))

        x = ops.fori_loop(0, chunks, replace, x)
    return ops.reshape(x, tokens.shape)


def _shards_and_chunks(tokens, num_heads):
    """(number of devices that images may be split over, number of chunks whose scores fit on each
    device's chip).
    """
    batch, count, _ = tokens.shape
    if not (_is_for(("tpu",), tokens) and isinstance(batch, int) and count):
        return 1, 1
    distribution = keras.distribution.distribution()
    if distribution is None:  # batches may be split by hand, or not
        shards, known = len(keras.distribution.list_devices()), 1
    else:
        mesh = distribution.device_mesh
        shards = known = mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)]
    if batch % shards:
        shards = 1
    scores = 4 * batch * num_heads * count * count / known  # bytes of a device
    if scores <= ALL_SCORES:
        return shards, 1
    divisors = [chunks for chunks in range(1, batch // shards + 1) if batch // shards % chunks == 0]
    return shards, next(
        (chunks for chunks in divisors if scores / chunks <= SCORES_AT_A_TIME), divisors[-1]
    )


def copies_rows_one_by_one(tensor):
    """Whether every other row of a tensor, `tensor[:, ::2]`, costs more than work with all of
    them.
    """
    return _is_for(("tpu",), tensor)


def best_of_each_row(similarity):
    """(the largest of each row of (B, S, T), its place), each (B, S)."""
    if _is_for(("gpu", "tpu"), similarity):
        return ops.max(similarity, axis=-1), ops.argmax(similarity, axis=-1)
    # Not every runtime that models are exported to can find the first of the largest.
    return tuple(ops.squeeze(found, axis=-1) for found in ops.top_k(similarity, 1))


def attention(query, key, value, bias, training):
    """`softmax(query @ key.T / sqrt(head_dim) + bias) @ value`, (B, Q, heads, head_dim), by the
    backend's kernel where it has a faster one.
    """
    if not _has_fused_attention(query, training):
        return attention_and_scores(query, key, value, bias)[0]
    if _BACKEND == "jax":
        # On a TPU, Keras 3.15 left to itself takes a kernel that is causal, drops the bias and does
        # not scale the queries.
        flash_attention = None if _platform(query) == "gpu" else False
        # CuDNN takes no bias that is broadcast over the queries
        if bias is not None and flash_attention is None:
            bias = ops.broadcast_to(bias, (*bias.shape[:2], query.shape[1], bias.shape[3]))
    else:
        # On PyTorch, Keras' check of what the GPU can do breaks `torch.compile`, and PyTorch takes
        # the flash kernel by itself.
        flash_attention = False if _BACKEND == "torch" else None
    return ops.dot_product_attention(query, key, value, bias=bias, flash_attention=flash_attention)


def _has_fused_attention(query, training):
    """Whether the backend has a kernel that is faster than `attention_and_scores`.

    On a CPU, JAX has none: what stands in for it is slower, and refuses float16. The gradient of
    PyTorch's is slow there in half precision; without it, training keeps the scores.
    """
    if _BACKEND == "jax":
        return _platform(query) != "cpu"
    if _BACKEND == "torch":
        half = keras.backend.standardize_dtype(query.dtype) in ("bfloat16", "float16")
        return not (training and half and _platform(query) == "cpu")
    return True


def attention_and_scores(query, key, value, bias, dropout=lambda scores: scores):
    """What `attention` computes, in the open: (outputs, scores), scores (B, heads, Q, T) after the
    softmax and before `dropout`.
    """
    dtype, scale = query.dtype, math.sqrt(query.shape[-1])
    # A TPU's product takes any order of axes: transposes would be copies
    in_place = _is_for(("tpu",), query)
    # The query is divided, not the product, which would overflow in float16.
    if in_place:
        logits = ops.einsum(
            "bqhd,bkhd->bhqk", ops.cast(query / scale, "float32"), ops.cast(key, "float32")
        )
    else:
        query = ops.transpose(query, (0, 2, 1, 3))
        key = ops.transpose(key, (0, 2, 3, 1))
        value = ops.transpose(value, (0, 2, 1, 3))
        logits = ops.matmul(query / scale, key)  # (B, heads, Q, T)
    # Half precision has too few digits for a sum over hundreds of tokens; PyTorch's softmax sums in
    # float32 whatever it is given.
    if _BACKEND != "torch":
        logits = ops.cast(logits, keras.backend.result_type(logits.dtype, "float32"))
    if bias is not None:
        logits = logits + ops.cast(bias, logits.dtype)
    scores = ops.cast(ops.softmax(logits, axis=-1), dtype)
    if in_place:
        return ops.einsum("bhqk,bkhd->bqhd", dropout(scores), value), scores
    x = ops.matmul(dropout(scores), value)  # (B, heads, Q, head_dim)
    return ops.transpose(x, (0, 2, 1, 3)), scores
