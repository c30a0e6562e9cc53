"""The layouts' attention in the form that a model's forward pass takes, on any mesh.

A tensor shard attends with its own heads. Decode calls of a staged layout, and verify calls of the
native kernels, write to the pool at their end (`kv.staged`); other calls write before they attend.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from jax import Array

from polaris_jax import sharding
from polaris_jax.rollout import native
from polaris_jax.rollout.fused_weights import Model
from polaris_jax.rollout.kv.int8 import rotated
from polaris_jax.rollout.kv.staged import attend_staged, new_staged, write_staged
from polaris_jax.rollout.programs.rows import Rows
from polaris_jax.rollout.programs.spec import ProgramSpec

STAGED_HEAD_AXIS = 2
QUERY_HEAD_AXIS = 2


def constant_steps(spec: ProgramSpec, model: Model) -> dict[str, Array]:
    """The constant scales of keys and values, if the layout has some, as an argument of `attend`.

    They follow from the weights, so new weights bring new ones.
    """
    return {} if spec.layout.steps is None else {"step_LC": spec.layout.steps(model)}


def attend(spec: ProgramSpec, *, one_query: bool, **rows: Array) -> Any:
    """The layout's attention for `Decoder.forward`; a tensor shard attends with its own heads."""
    layout = spec.layout
    function = layout.attend_one if one_query else layout.attend
    names = tuple(rows)

    def local(layer: Array, q: Array, k: Array, v: Array, pool: Any, *values: Array) -> Any:
        settings = dict(zip(names, values, strict=True))
        return function(layer, q, k, v, pool, num_layers=spec.num_layers, **settings)

    n, h = QUERY_HEAD_AXIS, layout.head_axis
    split = sharding.over_heads(
        local,
        spec.mesh,
        in_axes=(None, n, n, n, h, *(1 if name == "step_LC" else None for name in names)),
        out_axes=(n, h),
    )
    return lambda layer, q, k, v, pool: split(layer, q, k, v, pool, *rows.values())


def stage(spec: ProgramSpec, pool: Any, *, batch: int, tokens: int) -> Any:
    """`kv.staged.new_staged` for a call of `batch` rows with up to `tokens` tokens each."""
    z, h = spec.layout.head_axis, STAGED_HEAD_AXIS
    new = functools.partial(new_staged, batch=batch, num_layers=spec.num_layers, steps=tokens)
    return sharding.over_heads(new, spec.mesh, in_axes=(z,), out_axes=h)(pool)


def attend_to_staged(spec: ProgramSpec, pool: Any, step: Array, rows: Rows, table_BJ: Array) -> Any:
    """`kv.staged.attend_staged` for `Decoder.forward`; the pool is only read."""
    cached_B = jnp.where(rows.alive_B, rows.position_B, 0)
    h = STAGED_HEAD_AXIS
    kernel = native.attend_staged if spec.native else None
    local = functools.partial(attend_staged, num_layers=spec.num_layers, attend=kernel)
    split = sharding.over_heads(
        rotated(local) if spec.layout.kv_dtype else local,
        spec.mesh,
        in_axes=(None, 1, 1, 1, h, spec.layout.head_axis, None, None, None),
        out_axes=(1, h),
    )

    def one(layer: Array, q: Array, k: Array, v: Array, staged: Any) -> tuple[Array, Any]:
        out_BNH, staged = split(
            layer, q[:, 0], k[:, 0], v[:, 0], staged, pool, step, cached_B, table_BJ
        )
        return out_BNH[:, None], staged

    return one


def attend_to_drafted(
    spec: ProgramSpec, pool: Any, rows: Rows, queries_B: Array, table_BJ: Array
) -> Any:
    """`native.attend_drafted` for `Decoder.forward`; the pool is only read."""
    assert spec.native
    cached_B = jnp.where(rows.alive_B, rows.position_B, 0)
    return lambda layer, q, k, v, staged: native.attend_drafted(
        layer, q, k, v, staged, pool, cached_B, table_BJ, queries_B
    )


def unstage(
    spec: ProgramSpec, pool: Any, staged: Any, first_B: Array, count_B: Array, table_BJ: Array
) -> Any:
    """`kv.staged.write_staged`: the pool with the call's first `count_B` tokens of each row."""
    z = spec.layout.head_axis
    write = functools.partial(write_staged, num_layers=spec.num_layers)
    split = sharding.over_heads(
        write, spec.mesh, in_axes=(z, STAGED_HEAD_AXIS, None, None, None), out_axes=z
    )
    return split(pool, staged, first_B, count_B, table_BJ)
