"""Everything that a resume needs, saved and restored together."""

from polaris_jax.checkpoint.checkpointer import Checkpointer, CheckpointError

__all__ = ["CheckpointError", "Checkpointer"]
