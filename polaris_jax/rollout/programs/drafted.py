"""Verify drafted tokens: one forward pass over a row's last token and what may follow it.

The noise of a token is a function of seed, sample and position. So the token that the policy draws
at a position is known once its logits are, and a drafted token is accepted if it is that token. A
row gets its accepted tokens and the one drawn behind them: the tokens that single steps would draw,
at any temperature, whatever was drafted.

Source: speculative decoding, Leviathan et al. 2023 (arXiv:2211.17192), section 2. Differs: the
draft is text, not a distribution, and is held against the token drawn, so no token is resampled.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from polaris_jax import sharding
from polaris_jax.rollout.fused_weights import Model, with_rows
from polaris_jax.rollout.programs import attention
from polaris_jax.rollout.programs.draw import draw_tokens, row_keys, row_uniforms
from polaris_jax.rollout.programs.rows import Packed, Rows
from polaris_jax.rollout.programs.spec import ProgramSpec
from polaris_jax.rollout.settings import NO_TOKEN

DRAWN_TOKENS = 16  # at once, where only those are drawn that count: more are not bound by reading


def verify(
    model: Model,
    pool: Any,
    rows: Rows,
    draft_BX: Array,
    drafted_B: Array,
    table_BJ: Array,
    stop_X: Array,
    *,
    spec: ProgramSpec,
) -> tuple[Any, Packed]:
    """One to X + 1 tokens of each live row.

    The keys and values of a rejected token are never read. With native kernels they do not reach
    the pool. Otherwise the next call, which begins at the row's last token, writes each position
    before it reads there.

    Args:
        model: weights.
        pool: the page pool.
        rows: the rows.
        draft_BX: tokens that may follow each row's last token.
        drafted_B: how many of them count; pages must hold their keys and values.
        table_BJ: pages of each row.
        stop_X: ids that end a row.
        spec: what the program is compiled for.

    Returns:
        (pool, results). `Packed.steps` is the number of positions of a row that were computed.
    """
    batch, drafts = draft_BX.shape
    rows = rows._replace(alive_B=rows.alive_B & (rows.limit_B > 0))
    at_1T = jnp.arange(drafts + 1, dtype=jnp.int32)[None]
    token_BT = jnp.concatenate([rows.token_B[:, None], draft_BX], axis=1)
    position_BT = rows.position_B[:, None] + at_1T
    length = drafts + 1
    live_BT = rows.alive_B[:, None] & (at_1T <= drafted_B[:, None])
    cache: Any = pool
    if spec.native:
        # Tokens that nobody asked for cost nothing: a row without a draft is one token.
        live_M = jnp.nonzero(live_BT.reshape(-1), size=live_BT.size, fill_value=live_BT.size)[0]
        live_M = live_M.astype(jnp.int32)
        model = with_rows(model, live_M)
        cache = attention.stage(spec, pool, batch=batch, tokens=length)
        queries_B = jnp.sum(live_BT, axis=1, dtype=jnp.int32)
        attend = attention.attend_to_drafted(spec, pool, rows, queries_B, table_BJ)
    else:
        attend = attention.attend(
            spec,
            one_query=False,
            position_BT=position_BT,
            live_BT=live_BT,
            table_BJ=table_BJ,
            **attention.constant_steps(spec, model),
        )
    hidden_BTD, cache = model.forward(token_BT, position_BT, attend, cache, unroll=spec.unroll)
    hidden_MD = hidden_BTD.reshape(batch * length, -1)
    params = jax.tree.map(lambda x: jnp.repeat(x, length), rows.params)
    at_BT = position_BT + 1 - rows.prompt_len_B[:, None]
    noise = row_uniforms(row_keys(params), at_BT.reshape(-1)), params
    if spec.native:
        drawn = _draw_listed(model, hidden_MD, noise, live_M)
    else:
        drawn = _draw_all(model, hidden_MD, noise, batch=batch, spec=spec)
    drawn_BT, logp_BT = (x.reshape(batch, length) for x in drawn)
    taken_BT, alive_B = accepted(rows, draft_BX, drafted_B, drawn_BT, stop_X)
    count_B = jnp.sum(taken_BT, axis=1, dtype=jnp.int32)
    last_B = jnp.take_along_axis(drawn_BT, jnp.maximum(count_B - 1, 0)[:, None], axis=1)[:, 0]
    if spec.native:
        pool = attention.unstage(spec, pool, cache, rows.position_B, count_B, table_BJ)
    else:
        pool = cache
    return pool, Packed(
        token_BK=jnp.where(taken_BT, drawn_BT, NO_TOKEN),
        logp_BK=jnp.where(taken_BT, logp_BT, 0.0),
        count_B=count_B,
        token_B=jnp.where(count_B > 0, last_B, rows.token_B),
        position_B=rows.position_B + count_B,
        alive_B=alive_B,
        steps=jnp.where(jnp.any(rows.alive_B), length, 0)[None],
    )


def _draw_all(
    model: Model, hidden_MD: Array, noise: Any, *, batch: int, spec: ProgramSpec
) -> tuple[Array, Array]:
    """A token behind each of `hidden_MD`, and its log-prob, from (uniform number, params)."""
    mesh = spec.mesh
    logit_MV = model.unembed(sharding.whole(hidden_MD[:, None], mesh))[:, 0]

    def draw(piece: Any) -> Any:
        logit_BV, (uniform_B, params) = piece
        logit_BV = sharding.rows_of_logits(logit_BV, mesh)
        return sharding.whole(draw_tokens(logit_BV, uniform_B, params), mesh)

    # In pieces: a draw holds its logits several times over.
    pieces = jax.tree.map(lambda x: x.reshape(-1, batch, *x.shape[1:]), (logit_MV, noise))
    token_TB, logp_TB = jax.lax.map(draw, pieces)
    return token_TB.reshape(-1), logp_TB.reshape(-1)


def _draw_listed(
    model: Model, hidden_MD: Array, noise: Any, listed_M: Array
) -> tuple[Array, Array]:
    """`_draw_all` for the rows of a list, see `FusedWeights.rows`; zeros for the others."""
    most = len(listed_M)
    size = min(DRAWN_TOKENS, most)
    listed_M = jnp.pad(listed_M, (0, -most % size), constant_values=most)
    at_P = jnp.arange(size, dtype=jnp.int32)

    def draw(i: Array, drawn: tuple[Array, Array]) -> tuple[Array, Array]:
        row_P = jax.lax.dynamic_slice_in_dim(listed_M, i * size, size)
        live = with_rows(model, jnp.where(row_P < most, at_P, size))
        hidden_PD, (uniform_P, params) = jax.tree.map(
            lambda x: x[jnp.minimum(row_P, most - 1)], (hidden_MD, noise)
        )
        logit_PV = live.unembed(hidden_PD[:, None])[:, 0]
        token_P, logp_P = draw_tokens(logit_PV, uniform_P, params, by_native=True)
        token_M, logp_M = drawn
        return (
            token_M.at[row_P].set(token_P, mode="drop"),
            logp_M.at[row_P].set(logp_P, mode="drop"),
        )

    nothing = jnp.zeros(most, jnp.int32), jnp.zeros(most, jnp.float32)
    return jax.lax.fori_loop(0, -(-jnp.sum(listed_M < most) // size), draw, nothing)


def accepted(
    rows: Rows, draft_BX: Array, drafted_B: Array, drawn_BT: Array, stop_X: Array
) -> tuple[Array, Array]:
    """Which drawn tokens the rows take, and which rows are alive after them.

    Args:
        rows: the rows; `alive_B` False for those that take none.
        draft_BX: see `verify`.
        drafted_B: see `verify`.
        drawn_BT: the token drawn behind the row's last token and behind each drafted one.
        stop_X: ids that end a row.

    Returns:
        (taken_BT bool, alive_B): a row takes its drawn tokens up to the first one that differs from
        the draft, that ends the row, or behind which nothing was drafted.
    """
    drafts = draft_BX.shape[1]
    ended_BT = jnp.any(drawn_BT[..., None] == stop_X[None, None], axis=-1)
    position_BT = rows.position_B[:, None] + 1 + jnp.arange(drafts + 1)[None]
    ended_BT |= position_BT + 1 >= rows.limit_B[:, None]
    same_BX = (drawn_BT[:, :-1] == draft_BX) & (jnp.arange(drafts)[None] < drafted_B[:, None])
    more_BX = jnp.cumprod(same_BX & ~ended_BT[:, :-1], axis=1, dtype=jnp.int32) > 0
    taken_BT = jnp.concatenate([jnp.ones_like(ended_BT[:, :1]), more_BX], axis=1)
    taken_BT &= rows.alive_B[:, None]
    return taken_BT, rows.alive_B & ~jnp.any(taken_BT & ended_BT, axis=1)
