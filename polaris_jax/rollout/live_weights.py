"""The sampler's weights, which may be missing: during an update, and after a failed update."""

from __future__ import annotations

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from polaris_jax.models import Qwen
from polaris_jax.rollout.programs import Model
from polaris_jax.rollout.programs.spec import ProgramSpec
from polaris_jax.rollout.weights import SyncReport, sync_weights


class LiveWeights:
    """A sampler's own copy of a model, in the form that its programs take.

    Attributes:
        model: the weights; None if there are none.
        synced: total cost of the syncs since the last reset.
    """

    def __init__(self, spec: ProgramSpec, mesh: Mesh | None, dtype: DTypeLike):
        self._spec, self._mesh, self._dtype = spec, mesh, dtype
        self.model: Model | None = None
        self.synced = SyncReport()

    def take(self, model: Qwen) -> None:
        """Copies `model`, which `check_live` must have accepted.

        The old weights are freed leaf by leaf, so there are no weights if the copy fails.
        """
        spec, old = self._spec, self.model
        self.model = None
        self.model, report = sync_weights(
            model, self._dtype, self._mesh, old=old, fused=spec.fused, packed=spec.native
        )
        self.synced += report

    def free(self) -> None:
        """Deletes the weights."""
        for leaf in jax.tree.leaves(self.model):
            leaf.delete()
        self.model = None
