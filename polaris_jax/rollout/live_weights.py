"""The weights that a sampler has, or has not: while new ones come, and where that has failed."""

from __future__ import annotations

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from polaris_jax.models import Qwen
from polaris_jax.rollout.program_spec import ProgramSpec
from polaris_jax.rollout.programs import Model
from polaris_jax.rollout.weight_sync import SyncReport, sync_weights


class LiveWeights:
    """A sampler's own copy of a model, in the form that its programs take.

    Attributes:
        model: None while there are none.
        synced: what the syncs since the last reset have cost.
    """

    def __init__(self, spec: ProgramSpec, mesh: Mesh | None, dtype: DTypeLike):
        self._spec, self._mesh, self._dtype = spec, mesh, dtype
        self.model: Model | None = None
        self.synced = SyncReport()

    def take(self, model: Qwen) -> None:
        """Copies `model`; of one that `check_live` has passed.

        The old weights go leaf by leaf: where it breaks off there are none.
        """
        spec, old = self._spec, self.model
        self.model = None
        self.model, report = sync_weights(
            model, self._dtype, self._mesh, old=old, fused=spec.fused, packed=spec.native
        )
        self.synced += report

    def free(self) -> None:
        """Deletes them."""
        for leaf in jax.tree.leaves(self.model):
            leaf.delete()
        self.model = None
