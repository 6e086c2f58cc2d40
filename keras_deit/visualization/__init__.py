"""What the model looks at."""

from keras_deit.visualization.attention_rollout import attention_rollout
from keras_deit.visualization.overlays import plot_rollouts

__all__ = ["attention_rollout", "plot_rollouts"]
