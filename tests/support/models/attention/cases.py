"""Packed rows, and attention with its gradients as one call, whole or over context shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from polaris_jax.models.attention import ContextShard, row_order
from polaris_jax.models.attention.portable import attend_reference
from tests.tolerances import ATTENTION_RTOL

Attend = Callable[..., jax.Array]


class Case(NamedTuple):
    """Inputs, and the gradient that comes back to the output: zero in the padding, as a loss is."""

    q_BTNH: jax.Array
    k_BSKH: jax.Array
    v_BSKH: jax.Array
    segment_BS: jax.Array
    dout_BTNH: jax.Array


def case(
    batch: int,
    length: int,
    *,
    heads: tuple[int, int] = (4, 2),
    width: int = 16,
    segments: int = 4,
    padding: int = 7,
    dtype: str = "float32",
    seed: int = 0,
) -> Case:
    """Random rows of `segments` segments of random lengths, then padding."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(batch):
        cut = np.sort(rng.choice(np.arange(1, length - padding), segments - 1, replace=False))
        row = np.searchsorted(cut, np.arange(length), side="right") + 1
        rows.append(np.where(np.arange(length) < length - padding, row, 0))
    segment_BS = jnp.asarray(np.stack(rows), jnp.int32)

    def noise(count: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(batch, length, count, width)), dtype)

    q, k, v, dout = (noise(n) for n in (heads[0], heads[1], heads[1], heads[0]))
    return Case(q, k, v, segment_BS, _in_segments(dout, segment_BS))


def _in_segments(x: jax.Array, segment_BS: jax.Array) -> jax.Array:
    return jnp.where((segment_BS > 0)[..., None, None], x, 0)


def forward_and_gradients(attend: Attend, c: Case, segment_BS: jax.Array | None) -> list[jax.Array]:
    """[out, dq, dk, dv] of `attend(q, k, v, segment_BS)`, compiled."""

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array, dout: jax.Array) -> list[jax.Array]:
        out, back = jax.vjp(lambda *qkv: attend(*qkv, segment_BS), q, k, v)
        return [out, *back(dout)]

    return run(c.q_BTNH, c.k_BSKH, c.v_BSKH, c.dout_BTNH)


def assert_equals_reference(
    attend: Attend,
    c: Case,
    *,
    packed: bool = True,
    rtol: float = ATTENTION_RTOL,
    want: list[jax.Array] | None = None,
) -> None:
    """`attend` gives what `reference` gives: real positions' outputs, and every gradient.

    `want` is the reference's answer where it is at hand.
    """
    segment_BS = c.segment_BS if packed else None
    want = want or forward_and_gradients(attend_reference, c, segment_BS)
    got = forward_and_gradients(attend, c, segment_BS)
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, name
        assert jnp.isfinite(a).all(), name
        if packed:
            a, b = _in_segments(a, c.segment_BS), _in_segments(b, c.segment_BS)
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        assert jnp.abs(a - b).max() <= rtol * jnp.abs(b).max(), name


def over_shards(attend: Attend, shards: int, layout: str) -> Attend:
    """`attend` over whole rows, computed on `shards` devices, each with its part of the queries."""
    mesh = Mesh(np.array(jax.devices()[:shards]), ("rows",))
    split = PartitionSpec(None, "rows")
    context = ContextShard("rows", shards, layout)

    def whole(q, k, v, segment_BS):
        order = row_order(q.shape[1], shards, layout)
        part = jax.shard_map(
            lambda *args: attend(*args, context),
            mesh=mesh,
            in_specs=(split, PartitionSpec(), PartitionSpec(), PartitionSpec()),
            out_specs=split,
            check_vma=False,
        )
        return part(q[:, order], k, v, segment_BS)[:, np.argsort(order)]

    return whole
