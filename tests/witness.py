"""A DeiT in plain NumPy and float64, written from the papers: the witness for every number the
layers compute.

Weights come as {path: array} with the layers' own paths, relative to the layer.
"""

import math

import numpy as np

erf = np.vectorize(math.erf)


def under(weights, name):
    """The weights of a sub-layer, by paths relative to it."""
    return {
        path.removeprefix(f"{name}/"): value
        for path, value in weights.items()
        if path.startswith(f"{name}/")
    }


def dense(x, weights):
    return x @ weights["kernel"] + weights.get("bias", 0.0)


def layer_norm(x, weights, epsilon):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * weights["gamma"] + weights["beta"]


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def gelu(x):
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def patch_embedding(images, weights, patch_size):
    """Patch by patch: what a convolution with stride equal to its kernel does."""
    batch, height, width, _ = images.shape
    patch_height, patch_width = patch_size
    tokens = [
        dense(
            images[:, top : top + patch_height, left : left + patch_width].reshape(batch, -1),
            under(weights, "projection"),
        )
        for top in range(0, height, patch_height)
        for left in range(0, width, patch_width)
    ]
    return np.stack(tokens, axis=1)


def keys_cubic(x):
    """The cubic convolution kernel of Keys (1981) with a = -1/2."""
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resize_bicubic(grid, new_size):
    """Antialiased, number by number: (rows, columns, D) to (*new_size, D)."""
    for axis, new in enumerate(new_size):
        old = grid.shape[axis]
        lines = []
        for i in range(new):
            centre, width = (i + 0.5) * old / new - 0.5, max(old / new, 1.0)
            shares = np.array([keys_cubic((centre - j) / width) for j in range(old)])
            lines.append(np.tensordot(shares / shares.sum(), grid, axes=(0, axis)))
        grid = np.stack(lines, axis=axis)
    return grid


def token_position_embedding(patches, weights, position_scope):
    tokens = weights.get("prefix_tokens", np.zeros((0, patches.shape[-1])))
    prefix = np.broadcast_to(tokens, (len(patches), *tokens.shape))
    if position_scope == "rotary":
        return np.concatenate([prefix, patches], axis=1)
    if position_scope == "patches":
        return np.concatenate([prefix, patches + weights["positions"]], axis=1)
    return np.concatenate([prefix, patches], axis=1) + weights["positions"]


def attention(x, weights, num_heads, epsilon=1e-6, angles=None):
    """(outputs, scores), head by head; with norms of queries and keys if there are weights."""
    dim = x.shape[-1]
    head_dim = dim // num_heads
    qkv = dense(x, under(weights, "qkv"))

    def prepared(x, norm):
        if f"{norm}/gamma" in weights:
            x = layer_norm(x, under(weights, norm), epsilon)
        return x if angles is None else rotated(x, angles)

    outputs, scores = [], []
    for head in range(num_heads):
        query, key, value = (
            qkv[..., part * dim + head * head_dim : part * dim + (head + 1) * head_dim]
            for part in range(3)
        )
        query, key = prepared(query, "query_norm"), prepared(key, "key_norm")
        scores.append(softmax(query @ key.swapaxes(1, 2) / math.sqrt(head_dim)))
        outputs.append(scores[-1] @ value)
    return dense(np.concatenate(outputs, axis=-1), under(weights, "projection")), np.stack(
        scores, axis=1
    )


def rotated(x, angles):
    """Each pair (x[i], x[i + head_dim / 2]) as a complex number, multiplied by exp(1j * angle)."""
    half = x.shape[-1] // 2
    pairs = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def rotary_angles(rows, columns, head_dim, num_prefix_tokens, base):
    """(tokens, head_dim / 2), token by token."""
    count = head_dim // 4
    angles = np.zeros((num_prefix_tokens + rows * columns, 2 * count))
    for row in range(rows):
        for column in range(columns):
            token = num_prefix_tokens + row * columns + column
            for i in range(count):
                speed = 2 * np.pi / base ** (i / count)
                angles[token, i] = speed * (2 * (row + 0.5) / rows - 1)
                angles[token, count + i] = speed * (2 * (column + 0.5) / columns - 1)
    return angles


def silu(x):
    return x / (1 + np.exp(-x))


def mlp(x, weights, activation=gelu, use_gate=False):
    x = dense(x, under(weights, "intermediate"))
    if use_gate:
        gate, x = np.split(x, 2, axis=-1)
        x = activation(gate) * x
    else:
        x = activation(x)
    return dense(x, under(weights, "projection"))


def block(x, weights, num_heads, epsilon, angles=None, activation=gelu, use_gated_mlp=False):
    """(outputs, scores)."""
    branch, scores = attention(
        layer_norm(x, under(weights, "attention_norm"), epsilon),
        under(weights, "attention"),
        num_heads,
        epsilon,
        angles,
    )
    x = x + branch * weights.get("attention_scale/gamma", 1.0)
    branch = mlp(
        layer_norm(x, under(weights, "mlp_norm"), epsilon),
        under(weights, "mlp"),
        activation,
        use_gated_mlp,
    )
    return x + branch * weights.get("mlp_scale/gamma", 1.0), scores


def backbone(images, weights, config):
    """{"output", "block_outputs", "attention_scores"} of a DeiTBackbone with this config, on
    channels_last images.
    """
    patch_height, patch_width = config["patch_size"]
    x = patch_embedding(images, under(weights, "patch_embedding"), config["patch_size"])
    num_patches, angles = x.shape[1], None
    x = token_position_embedding(
        x, under(weights, "token_position_embedding"), config["position_scope"]
    )
    if config["position_scope"] == "rotary":
        angles = rotary_angles(
            images.shape[1] // patch_height,
            images.shape[2] // patch_width,
            config["hidden_dim"] // config["num_heads"],
            x.shape[1] - num_patches,
            base=100.0,
        )
    if config["use_pre_norm"]:
        x = layer_norm(x, under(weights, "pre_norm"), config["layer_norm_epsilon"])
    block_outputs, attention_scores = {}, {}
    for index in range(config["num_layers"]):
        name = f"block_{index}"
        x, scores = block(
            x,
            under(weights, name),
            config["num_heads"],
            config["layer_norm_epsilon"],
            angles,
            {"gelu": gelu, "silu": silu}[config["activation"]],
            config["use_gated_mlp"],
        )
        block_outputs[name], attention_scores[name] = x, scores
    output = x
    if config["use_final_norm"]:
        output = layer_norm(x, under(weights, "final_norm"), config["layer_norm_epsilon"])
    return {"output": output, "block_outputs": block_outputs, "attention_scores": attention_scores}


def weights_of(layer):
    """{path relative to the layer: float64 array}; a functional model's layers stand at the
    root.
    """
    prefix = f"{layer.name}/"
    return {v.path.removeprefix(prefix): np.asarray(_numpy(v), "float64") for v in layer.weights}


def _numpy(variable):
    import keras

    return keras.ops.convert_to_numpy(variable)
