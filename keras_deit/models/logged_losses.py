"""Parts of the training loss in the log."""

import keras
from keras import ops


class LoggedLosses:
    """Mixin for models whose loss has parts: `fit` logs the mean of each over an epoch."""

    def _create_loss_trackers(self, names):
        self._logged = tuple(names)
        for name in names:
            setattr(self, f"_{name}_tracker", keras.metrics.Mean(name=name))

    def _log_losses(self, losses, batch_size):
        """Adds the losses of a batch to their means.

        Args:
            losses: dict from name to loss.
            batch_size: int or tensor.
        """
        # `tf.distribute` divides every loss by the number of replicas. A loss of 1 measures that
        # factor, so that the log can undo it.
        share = keras.losses.MeanAbsoluteError()(ops.zeros((1, 1)), ops.ones((1, 1)))
        for name, loss in losses.items():
            getattr(self, f"_{name}_tracker").update_state(loss / share, sample_weight=batch_size)

    def test_step(self, *args):
        # `evaluate` computes none of the parts. JAX's step also returns its state.
        result = super().test_step(*args)
        logs, *state = result if isinstance(result, tuple) else (result,)
        logs = {name: value for name, value in logs.items() if name not in self._logged}
        return (logs, *state) if state else logs
