"""The policy update on packed rows, and the trainer's state."""

from polaris_jax.train.metrics import merge_metrics
from polaris_jax.train.objective import TokenLoss, token_loss
from polaris_jax.train.state import (
    TrainState,
    abstract_train_state,
    init_train_state,
    random_train_state,
)
from polaris_jax.train.update import Updater

__all__ = [
    "TokenLoss",
    "TrainState",
    "Updater",
    "abstract_train_state",
    "init_train_state",
    "merge_metrics",
    "random_train_state",
    "token_loss",
]
