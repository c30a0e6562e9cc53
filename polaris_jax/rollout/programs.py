"""The compiled programs: prefill a chunk of prompts, decode up to K steps, copy pages.

Samplers of equal shapes share them. Weights are an argument: new ones compile nothing anew. The
pool is donated.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polaris_jax.models import Qwen
from polaris_jax.rollout import paged_kv
from polaris_jax.rollout.decode_state import Rows
from polaris_jax.rollout.paged_kv import Pool
from polaris_jax.rollout.sampling import draw_tokens, row_keys, row_uniforms

NO_TOKEN = -1


class Packed(NamedTuple):
    """What a decode call brings back to the host, rows as in the call."""

    token_BK: Any
    logp_BK: Any
    count_B: Any
    alive_B: Any
    steps: Any


copy_pages = jax.jit(paged_kv.copy_pages, static_argnames="num_layers", donate_argnums=0)
move_pages = jax.jit(paged_kv.move_pages, static_argnames="num_layers", donate_argnums=0)


@functools.partial(jax.jit, static_argnames=("num_layers", "unroll"), donate_argnums=1)
def prefill(
    model: Qwen,
    pool: Pool,
    token_BT: Array,
    first_B: Array,
    count_B: Array,
    table_BJ: Array,
    *,
    num_layers: int,
    unroll: bool,
) -> Pool:
    step_BT = jnp.arange(token_BT.shape[1], dtype=jnp.int32)[None]
    attend = functools.partial(
        paged_kv.attend_pages,
        position_BT=first_B[:, None] + step_BT,
        live_BT=step_BT < count_B[:, None],
        table_BJ=table_BJ,
        num_layers=num_layers,
    )
    _, pool = model.forward(token_BT, first_B[:, None] + step_BT, attend, pool, unroll=unroll)
    return pool


@functools.partial(
    jax.jit, static_argnames=("steps", "layout", "num_layers", "unroll"), donate_argnums=1
)
def decode(
    model: Qwen,
    pool: Pool,
    rows: Rows,
    table_BJ: Array,
    stop_X: Array,
    exit_below: Array,
    *,
    steps: int,
    layout: str,
    num_layers: int,
    unroll: bool,
) -> tuple[Pool, Packed]:
    batch = rows.token_B.shape[0]
    key_B = row_keys(rows.params)
    windowed = layout == "window"
    cache: Any = paged_kv.read_window(pool, table_BJ, num_layers=num_layers) if windowed else pool

    def forward(token_B: Array, position_B: Array, alive_B: Array, cache: Any) -> Any:
        if windowed:
            # One window a layer: the unrolled loop's index is a Python list in disguise.
            layers = list(cache)
            order = iter(range(num_layers))

            def attend(_: Array, q: Array, k: Array, v: Array, carry: Any) -> tuple[Array, Any]:
                layer = next(order)
                out_BNH, layers[layer] = paged_kv.attend_window(
                    q[:, 0], k[:, 0], v[:, 0], layers[layer], position_B
                )
                return out_BNH[:, None], carry

            hidden, _ = model.forward(
                token_B[:, None], position_B[:, None], attend, None, unroll=True
            )
            return hidden, tuple(layers)
        attend_fn = functools.partial(
            paged_kv.attend_pages,
            position_BT=position_B[:, None],
            live_BT=alive_B[:, None],
            table_BJ=table_BJ,
            num_layers=num_layers,
        )
        return model.forward(token_B[:, None], position_B[:, None], attend_fn, cache, unroll=unroll)

    def going(state: Any) -> Array:
        i, _, _, alive_B, *_ = state
        return (i < steps) & (jnp.sum(alive_B) >= jnp.maximum(exit_below, 1))

    def step(state: Any) -> Any:
        i, token_B, position_B, alive_B, cache, token_BK, logp_BK = state
        hidden_BTD, cache = forward(token_B, position_B, alive_B, cache)
        logit_BV = model.unembed(hidden_BTD)[:, 0]
        uniform_B = row_uniforms(key_B, position_B + 1 - rows.prompt_len_B)
        new_B, logp_B = draw_tokens(logit_BV, uniform_B, rows.params)
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
    ran, _, position_B, alive_B, cache, token_BK, logp_BK = jax.lax.while_loop(going, step, state)
    count_B = position_B - rows.position_B
    if windowed:
        pool = paged_kv.write_back(
            pool, cache, first_B=rows.position_B, count_B=count_B, steps=steps, table_BJ=table_BJ
        )
    else:
        pool = cache
    return pool, Packed(token_BK, logp_BK, count_B, alive_B, ran)
