"""Less memory in training: what a layer computed is computed again on the way back, rather than
kept.
"""

import keras
from keras import ops

# Keras' name for the variable of a generator.
SEED_STATE = "seed_generator_state"


def rematerialized(layer, function, *inputs):
    """`function(*inputs)`, of tensors, whose gradient calls it again.

    `keras.remat` alone would draw another dropout mask the second time, on TensorFlow and PyTorch,
    and its gradients would be of another function. So all that `layer` has goes in as arguments,
    its seeds too, and their new states come out.
    """
    variables = layer.variables
    seeds = [variable for variable in variables if variable.name == SEED_STATE]

    def stateless(inputs, values):
        with keras.StatelessScope(list(zip(variables, values))) as scope:
            outputs = function(*inputs)
        return outputs, [scope.get_current_value(seed) for seed in seeds]

    # A copy, for `assign` below writes into PyTorch's tensors.
    values = [
        ops.copy(variable) if variable.name == SEED_STATE else ops.convert_to_tensor(variable)
        for variable in variables
    ]
    outputs, states = keras.remat(stateless)(list(inputs), values)
    for seed, state in zip(seeds, states):
        seed.assign(state)
    return outputs
