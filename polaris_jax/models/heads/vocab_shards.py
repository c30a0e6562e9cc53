"""A head whose vocabulary is split over devices: a chunk's logits, and sums over the slices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def head_logits(hidden_CD: Array, weight_VD: Array) -> Array:
    """float32 logits [C, V]."""
    return jnp.einsum("cd,vd->cv", hidden_CD, weight_VD, preferred_element_type=jnp.float32)


class VocabShards:
    """The exchanges between devices that hold slices of the vocabulary.

    Every device of a group holds its own tokens and its own slice of the vocabulary. Without axes
    the methods exchange nothing.

    Args:
        axes: names of the mesh axes that split the vocabulary, inside shard_map; empty: one slice.
        rows: number of rows in this device's slice.
    """

    def __init__(self, axes: tuple[str, ...], rows: int):
        self._axes, self._rows = axes, rows

    def gather(self, x: Array) -> Array:
        """The chunks of all devices, concatenated along the first dimension."""
        return jax.lax.all_gather(x, self._axes, axis=0, tiled=True) if self._axes else x

    def sum(self, x: Array) -> Array:
        """The sum over the vocabulary's slices, for this device's tokens only."""
        return jax.lax.psum_scatter(x, self._axes, tiled=True) if self._axes else x

    def max(self, x: Array) -> Array:
        """The maximum over the vocabulary's slices, for all tokens."""
        return jax.lax.pmax(x, self._axes) if self._axes else x

    def own(self, x: Array) -> Array:
        """The entries of a gathered array that belong to this device's tokens."""
        if not self._axes:
            return x
        size = x.shape[0] // jax.lax.axis_size(self._axes)
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(self._axes) * size, size)

    def is_target(self, target_C: Array) -> Array:
        """[C, V], True at each token's target if the target lies in this slice."""
        first = jax.lax.axis_index(self._axes) * self._rows if self._axes else 0
        return (target_C - first)[:, None] == jnp.arange(self._rows)[None]

    def at_target(self, logit_CV: Array, target_C: Array) -> Array:
        """The target's logit; 0 if another slice holds the target."""
        if not self._axes:
            return jnp.take_along_axis(logit_CV, target_C[:, None], axis=-1)[:, 0]
        return jnp.sum(jnp.where(self.is_target(target_C), logit_CV, 0.0), axis=-1)
