"""The formulas of losses between tokens, in NumPy. Each returns one value per image."""

import numpy as np


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


def attention_loss(teacher, student):
    """MiniLM: the mean over heads and queries of KL(teacher || student)."""
    return kl(teacher, student).mean((1, 2))


def relation_loss(teacher, student, heads):
    """MiniLMv2: one relation head at a time."""

    def relations(vectors, head):
        size = vectors.shape[-1] // heads
        part = vectors[..., head * size : (head + 1) * size]
        return softmax(part @ part.transpose(0, 2, 1) / np.sqrt(size))

    of_heads = [kl(relations(teacher, head), relations(student, head)) for head in range(heads)]
    return np.mean(of_heads, axis=0).mean(-1)


def feature_loss(teacher, student, beta=2.0):
    """Smooth L1 to the teacher's tokens, which LayerNorm without weights normalises."""
    target = (teacher - teacher.mean(-1, keepdims=True)) / np.sqrt(
        teacher.var(-1, keepdims=True) + 1e-5
    )
    error = np.abs(student - target)
    return np.where(error < beta, error**2 / (2 * beta), error - beta / 2).mean((1, 2))
