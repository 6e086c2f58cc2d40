"""Gradient checkpointing: less memory in training, because the backward pass recomputes."""

import keras
from keras import ops

# Keras' name for the variable of a seed generator
SEED_STATE = "seed_generator_state"


def rematerialized(layer, function, *inputs):
    """Returns `function(*inputs)`, which the backward pass recomputes.

    `keras.remat` alone draws another dropout mask in the backward pass on TensorFlow and PyTorch,
    which gives wrong gradients. Here, all variables of `layer` are arguments of the recomputed
    function, including its seeds, whose new states are returned and assigned.
    """
    variables = layer.variables
    seeds = [variable for variable in variables if variable.name == SEED_STATE]

    def stateless(inputs, values):
        with keras.StatelessScope(list(zip(variables, values))) as scope:
            outputs = function(*inputs)
        return outputs, [scope.get_current_value(seed) for seed in seeds]

    # A copy, because `assign` below writes into PyTorch's tensors in place.
    values = [
        ops.copy(variable) if variable.name == SEED_STATE else ops.convert_to_tensor(variable)
        for variable in variables
    ]
    outputs, states = keras.remat(stateless)(list(inputs), values)
    for seed, state in zip(seeds, states):
        seed.assign(state)
    return outputs
