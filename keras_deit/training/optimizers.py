"""The optimizers of recipes: Keras' own, and some with a learning rate per variable.

Those are one optimizer for all variables, and not a `keras.optimizers.MultiOptimizer` with one for
each learning rate: `global_clipnorm` is the norm over all gradients, `learning_rate` can be read,
and there is one count of steps.
"""

import keras
from keras import ops

from keras_deit.training.learning_rates import learning_rate_factor

# timm's ModelEmaV3 has these constants; the idea and the numbers are Katherine Crowson's.
_WARMUP_POWER = 2 / 3


def build_optimizer(
    kind,
    variables,
    num_layers,
    *,
    layer_decay,
    head_learning_rate_factor,
    ema_warmup,
    weight_decay,
    **kwargs,
):
    """The optimizer of a recipe.

    Args:
        kind: `"adamw"`, `"lamb"` or `"sgd"`.
        variables: those to train.
        num_layers: int, number of blocks of the model.
        layer_decay, head_learning_rate_factor, ema_warmup, weight_decay: fields of `Recipe`.
        **kwargs: arguments of the Keras optimizer.
    """
    if layer_decay in (None, 1.0) and head_learning_rate_factor == 1.0 and not ema_warmup:
        # On PyTorch, Keras updates all variables together for its own classes only.
        optimizer = _OF_KERAS[kind](weight_decay=weight_decay, **kwargs)
        optimizer.exclude_from_weight_decay(var_list=[v for v in variables if not _decays(v)])
        return optimizer
    return _PER_VARIABLE[kind](
        weight_decay=weight_decay,
        layer_decay=1.0 if layer_decay is None else layer_decay,
        num_layers=num_layers,
        head_learning_rate_factor=head_learning_rate_factor,
        ema_warmup=ema_warmup,
        **kwargs,
    )


class _PerVariable:
    """Mixin for a Keras optimizer.

    `variable -= factor * learning_rate * (update + weight_decay * variable)`, where the factor
    depends on the path of the variable, and kernels alone decay.

    Keras' own weight decay is not used: it has no factor, and the variables that
    `exclude_from_weight_decay` excludes are not saved. Here, both follow from the config.

    Args:
        learning_rate: float or schedule, for variables with a factor of 1.
        weight_decay: float, decoupled weight decay.
        layer_decay, num_layers, head_learning_rate_factor: see `learning_rate_factor`.
        ema_warmup: bool, whether the momentum of the moving average rises from 0:
            `min(ema_momentum, 1 - (1 + step) ** (-2 / 3))`.
        **kwargs: arguments of the Keras optimizer.
    """

    def __init__(
        self,
        learning_rate,
        weight_decay=0.0,
        layer_decay=1.0,
        num_layers=0,
        head_learning_rate_factor=1.0,
        ema_warmup=False,
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, weight_decay=None, **kwargs)
        self.decoupled_weight_decay = weight_decay
        self.layer_decay = layer_decay
        self.num_layers = num_layers
        self.head_learning_rate_factor = head_learning_rate_factor
        self.ema_warmup = ema_warmup

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        rule = (self.layer_decay, self.num_layers, self.head_learning_rate_factor)
        self._factors = [learning_rate_factor(variable.path, *rule) for variable in variables]
        self._decays = [_decays(variable) for variable in variables]

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        learning_rate = learning_rate * self._factors[index]
        if self.decoupled_weight_decay and self._decays[index]:
            decay = ops.cast(learning_rate * self.decoupled_weight_decay, variable.dtype)
            self.assign_sub(variable, ops.multiply(variable, decay))
        super().update_step(gradient, variable, learning_rate)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        raise ValueError(
            "The optimizer of a recipe decays kernels only, and takes no further exclusions. For "
            "no weight decay, use `dataclasses.replace(recipe, weight_decay=0.0)`."
        )

    def finalize_variable_values(self, var_list):
        # On JAX, Keras lets weights and averages share one array, which the next step deletes.
        super().finalize_variable_values(var_list)
        for variable in var_list:
            variable.assign(ops.copy(variable))

    @property
    def ema_momentum(self):
        """The momentum at the current step."""
        if not self.ema_warmup:
            return self._highest_momentum
        momentum = 1 - (1 + ops.cast(self.iterations, "float32")) ** -_WARMUP_POWER
        if self.gradient_accumulation_steps:
            # Keras averages at every step, also at those that only accumulate gradients.
            momentum = momentum ** (1 / self.gradient_accumulation_steps)
        return ops.minimum(momentum, self._highest_momentum)

    @ema_momentum.setter
    def ema_momentum(self, value):
        self._highest_momentum = value

    def get_config(self):
        return {
            **super().get_config(),
            "ema_momentum": self._highest_momentum,
            "weight_decay": self.decoupled_weight_decay,
            "layer_decay": self.layer_decay,
            "num_layers": self.num_layers,
            "head_learning_rate_factor": self.head_learning_rate_factor,
            "ema_warmup": self.ema_warmup,
        }


def _decays(variable):
    return len(variable.shape) > 1 and variable.name not in ("positions", "prefix_tokens")


@keras.saving.register_keras_serializable(package="keras_deit")
class RecipeAdamW(_PerVariable, keras.optimizers.Adam):
    """AdamW, as `_PerVariable` describes."""


@keras.saving.register_keras_serializable(package="keras_deit")
class RecipeLamb(_PerVariable, keras.optimizers.Lamb):
    """LAMB, as `_PerVariable` describes."""


@keras.saving.register_keras_serializable(package="keras_deit")
class RecipeSGD(_PerVariable, keras.optimizers.SGD):
    """SGD, as `_PerVariable` describes."""


_OF_KERAS = {
    "adamw": keras.optimizers.AdamW,
    "lamb": keras.optimizers.Lamb,
    "sgd": keras.optimizers.SGD,
}
_PER_VARIABLE = {"adamw": RecipeAdamW, "lamb": RecipeLamb, "sgd": RecipeSGD}
