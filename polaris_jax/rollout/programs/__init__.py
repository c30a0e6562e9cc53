"""The compiled programs: prefill prompts, decode up to K steps, verify drafts, copy pages.

Samplers of equal specs share the programs. Weights are an argument, so new weights need no
compilation. The pool is donated.

On a mesh every array of rows, and the pool's page axis, is split over all data shards. Each shard
works on its own part, and its decode loop ends when its own rows have ended. Heads are split over
tensor: attention runs on each shard's own heads (kernels see local shapes), and the compiler splits
the rest. One device needs none of this.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polaris_jax import sharding
from polaris_jax.rollout import kv, native
from polaris_jax.rollout.fused_weights import Model, without_dead_tail
from polaris_jax.rollout.programs import attention
from polaris_jax.rollout.programs.drafted import verify
from polaris_jax.rollout.programs.draw import draw_tokens, row_keys, row_uniforms
from polaris_jax.rollout.programs.rows import Packed, Rows
from polaris_jax.rollout.programs.spec import ProgramSpec
from polaris_jax.rollout.settings import NO_TOKEN


class Programs(NamedTuple):
    """Jitted functions of one spec.

    prefill(model, pool, token_BT, first_B, count_B, table_BJ) -> pool
    decode(model, pool, rows, table_BJ, stop_X, exit_below_D, steps_D) -> (pool, Packed)
    verify(model, pool, rows, draft_BX, drafted_B, table_BJ, stop_X) -> (pool, Packed)
    copy_pages(pool, from_X, to_X) -> pool
    move_pages(pool, prefix_pool, to_J) -> pool
    """

    prefill: Any
    decode: Any
    verify: Any
    copy_pages: Any
    move_pages: Any


@functools.cache
def compiled(spec: ProgramSpec) -> Programs:
    """The programs of a spec; equal specs share their programs."""
    layout, mesh = spec.layout, spec.mesh
    pages = {"num_layers": spec.num_layers, "page_axis": layout.page_axis}
    z = layout.page_axis

    def jitted(fn: Any, *, pool_at: int, in_axes: Any, out_axes: Any) -> Any:
        fn = sharding.over_slots(fn, mesh, in_axes=in_axes, out_axes=out_axes)
        if mesh is None:
            return jax.jit(fn, donate_argnums=pool_at)
        # Without these the compiler chooses the pool's sharding, and the next call compiles again.
        pool_out, row_out = pool_sharding(spec), sharding.to_members(mesh)
        whole = out_axes == z
        out = pool_out if whole else (pool_out, row_out)
        return jax.jit(fn, donate_argnums=pool_at, out_shardings=out)

    return Programs(
        prefill=jitted(
            functools.partial(_prefill, spec=spec),
            pool_at=1,
            in_axes=(None, z, 0, 0, 0, 0),
            out_axes=z,
        ),
        decode=jitted(
            functools.partial(_decode, spec=spec),
            pool_at=1,
            in_axes=(None, z, 0, 0, None, 0, 0),
            out_axes=(z, 0),
        ),
        verify=jitted(
            functools.partial(verify, spec=spec),
            pool_at=1,
            in_axes=(None, z, 0, 0, 0, 0, None),
            out_axes=(z, 0),
        ),
        copy_pages=jitted(
            functools.partial(kv.copy_pages, **pages),
            pool_at=0,
            in_axes=(z, 0, 0),
            out_axes=z,
        ),
        move_pages=jitted(
            functools.partial(kv.move_pages, **pages),
            pool_at=0,
            in_axes=(z, z, 0),
            out_axes=z,
        ),
    )


@functools.cache
def zeros(
    shape: tuple[int, ...],
    dtype: np.dtype,
    where: jax.sharding.Sharding | None,
    *,
    by_native: bool = False,
) -> Any:
    """Jitted: zeros, made on their own devices; `jnp.zeros` makes all on one device first."""
    make = native.zeros if by_native else jnp.zeros
    return jax.jit(lambda: make(shape, dtype), out_shardings=where)


def pool_sharding(spec: ProgramSpec) -> jax.sharding.NamedSharding:
    """Sharding of the pool's arrays on the spec's mesh."""
    assert spec.mesh is not None
    return sharding.pool_sharding(
        spec.mesh, page_axis=spec.layout.page_axis, head_axis=spec.layout.head_axis
    )


def _prefill(
    model: Model,
    pool: Any,
    token_BT: Array,
    first_B: Array,
    count_B: Array,
    table_BJ: Array,
    *,
    spec: ProgramSpec,
) -> Any:
    step_BT = jnp.arange(token_BT.shape[1], dtype=jnp.int32)[None]
    attend = attention.attend(
        spec,
        one_query=False,
        position_BT=first_B[:, None] + step_BT,
        live_BT=step_BT < count_B[:, None],
        table_BJ=table_BJ,
        **attention.constant_steps(spec, model),
    )

    def write(pool: Any) -> Any:
        position_BT = first_B[:, None] + step_BT
        return model.forward(token_BT, position_BT, attend, pool, unroll=spec.unroll)[1]

    if sharding.slot_shards(spec.mesh) == 1:
        return write(pool)
    # A shard without a row of its own does nothing. A loop, because a branch may copy the pool.
    some = jnp.any(count_B > 0)
    _, pool = jax.lax.while_loop(
        lambda state: (state[0] < 1) & some,
        lambda state: (state[0] + 1, write(state[1])),
        (jnp.int32(0), pool),
    )
    return pool


def _decode(
    model: Model,
    pool: Any,
    rows: Rows,
    table_BJ: Array,
    stop_X: Array,
    exit_below_D: Array,
    steps_D: Array,
    *,
    spec: ProgramSpec,
) -> tuple[Any, Packed]:
    batch, steps, mesh = rows.token_B.shape[0], spec.steps, spec.mesh
    # A call behind another takes `alive_B` from that call, but slots may be cleared since.
    rows = rows._replace(alive_B=rows.alive_B & (rows.limit_B > 0))
    # A shard that begins with fewer rows keeps running: other shards' rows decide the bucket.
    begun = jnp.sum(rows.alive_B)
    exit_below = jnp.where(begun < exit_below_D[0], 1, jnp.maximum(exit_below_D[0], 1))
    key_B = row_keys(rows.params)
    steps_of_weights = attention.constant_steps(spec, model)
    cache: Any = pool
    if spec.staged:
        cache = attention.stage(spec, pool, batch=batch, tokens=steps)

    def forward(
        model: Model, i: Array, token_B: Array, position_B: Array, alive_B: Array, cache: Any
    ) -> Any:
        if spec.staged:
            attend_fn = attention.attend_to_staged(spec, pool, i, rows, table_BJ)
        else:
            attend_fn = attention.attend(
                spec,
                one_query=True,
                position_BT=position_B[:, None],
                live_BT=alive_B[:, None],
                table_BJ=table_BJ,
                **steps_of_weights,
            )
        return model.forward(
            token_B[:, None], position_B[:, None], attend_fn, cache, unroll=spec.unroll
        )

    def going(state: Any) -> Array:
        i, _, _, alive_B, *_ = state
        return (i < steps) & (i < steps_D[0]) & (jnp.sum(alive_B) >= exit_below)

    def step(state: Any) -> Any:
        i, token_B, position_B, alive_B, cache, token_BK, logp_BK = state
        live = without_dead_tail(model, alive_B)
        hidden_BTD, cache = forward(live, i, token_B, position_B, alive_B, cache)
        # Else the rows' split of the draw spreads to all activations, with more collectives.
        hidden_BTD = sharding.whole(hidden_BTD, mesh)
        logit_BV = sharding.rows_of_logits(live.unembed(hidden_BTD)[:, 0], mesh)
        uniform_B = row_uniforms(key_B, position_B + 1 - rows.prompt_len_B)
        drawn = draw_tokens(logit_BV, uniform_B, rows.params, by_native=spec.native)
        new_B, logp_B = sharding.whole(drawn, mesh)
        new_B = jnp.where(alive_B, new_B, token_B)
        token_BK = token_BK.at[:, i].set(new_B)
        logp_BK = logp_BK.at[:, i].set(jnp.where(alive_B, logp_B, 0.0))
        position_B = position_B + alive_B
        ended_B = jnp.any(new_B[:, None] == stop_X[None], axis=-1)
        alive_B = alive_B & ~ended_B & (position_B + 1 < rows.limit_B)
        return i + 1, new_B, position_B, alive_B, cache, token_BK, logp_BK

    state = (
        jnp.int32(0),
        rows.token_B,
        rows.position_B,
        rows.alive_B,
        cache,
        jnp.full((batch, steps), NO_TOKEN, jnp.int32),
        jnp.zeros((batch, steps), jnp.float32),
    )
    ran, token_B, position_B, alive_B, cache, token_BK, logp_BK = jax.lax.while_loop(
        going, step, state
    )
    count_B = position_B - rows.position_B
    if spec.staged:
        pool = attention.unstage(spec, pool, cache, rows.position_B, count_B, table_BJ)
    else:
        pool = cache
    return pool, Packed(token_BK, logp_BK, count_B, token_B, position_B, alive_B, ran[None])
