"""Draws one token a row, on the device.

A token is drawn with one uniform number a row. The CDF is inverted in two levels: first the block,
then the token in the block. So no noise over the vocabulary is needed. Top-k and top-p find their
thresholds by bisection over the bits of the logits, so nothing is sorted. Filters run only if some
row uses them.

Source: top-p, Holtzman et al. 2019 (arXiv:1904.09751), section 3.1; min-p, Nguyen et al. 2024
(arXiv:2407.01082), section 3. Differs: top-p acts on the tokens that top-k and min-p keep,
renormalised; ties go to the lower id.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polaris_jax.rollout import native


class RowParams(NamedTuple):
    """Sampling settings of the rows of a decode call, each [B].

    `seed_B` and `sample_B` give the row's key; the filters are as in `SamplingParams`.
    """

    temperature_B: Any
    top_p_B: Any
    top_k_B: Any
    min_p_B: Any
    seed_B: Any
    sample_B: Any


def row_keys(params: RowParams) -> Array:
    """[B] keys: fold_in(key(prompt's seed), sample index).

    Of threefry, whatever jax's default is: under rbg a row's numbers would depend on other rows.
    """

    def key(seed: Array, sample: Array) -> Array:
        return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), sample)

    return jax.vmap(key)(params.seed_B, params.sample_B)


def row_uniforms(key_B: Array, response_position_B: Array) -> Array:
    """[B] uniform numbers in [0, 1): key folded by the position in the response, from 0."""

    def uniform(key: Array, at: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, at), dtype=jnp.float32)

    return jax.vmap(uniform)(key_B, response_position_B)


def draw_tokens(
    logit_BV: Array, uniform_B: Array, params: RowParams, *, by_native: bool = False
) -> tuple[Array, Array]:
    """One token a row, and its log-prob before any filter.

    Args:
        logit_BV: float32 logits.
        uniform_B: in [0, 1).
        params: settings of each row.
        by_native: True: the kernel in `native` draws, with the same tokens, unless a row has a
            filter or the vocabulary is too small to be worth it.

    Returns:
        (token_B int32, logp_B float32): logp = log_softmax(logits / temperature) at the token;
        argmax and temperature 1 if temperature is 0.
    """
    if not by_native or logit_BV.shape[-1] not in native.DRAWN_VOCABS:
        return _draw_by_xla(logit_BV, uniform_B, params)
    return jax.lax.cond(
        jnp.any(_filters(params)),
        lambda: _draw_by_xla(logit_BV, uniform_B, params),
        lambda: _draw_by_native(logit_BV, uniform_B, params),
    )


def _filters(params: RowParams) -> Array:
    """[B] True if a filter changes the row's draw; none does if temperature is 0."""
    filters = (params.top_k_B > 0) | (params.top_p_B < 1) | (params.min_p_B > 0)
    return filters & (params.temperature_B != 0)


def _draw_by_native(logit_BV: Array, uniform_B: Array, params: RowParams) -> tuple[Array, Array]:
    token_B, distance_B, norm_B = native.draw(logit_BV, uniform_B, params.temperature_B)
    return token_B, distance_B - jnp.log(norm_B)


def _draw_by_xla(logit_BV: Array, uniform_B: Array, params: RowParams) -> tuple[Array, Array]:
    greedy_B = params.temperature_B == 0
    # Divided last: the likeliest token's mass is 1 and its log-prob finite at any temperature.
    distance_BV = logit_BV - jnp.max(logit_BV, axis=-1, keepdims=True)
    shifted_BV = distance_BV / jnp.where(greedy_B, 1.0, params.temperature_B)[:, None]
    mass_BV = jnp.exp(shifted_BV)
    norm_B = jnp.sum(mass_BV, axis=-1)
    # Filters and argmax are computed only if some row needs them.
    token_B = jax.lax.cond(
        jnp.any(_filters(params)),
        lambda: _inverse_cdf(_filtered(logit_BV, mass_BV, params), uniform_B),
        lambda: _inverse_cdf(mass_BV, uniform_B),
    )
    token_B = jax.lax.cond(
        jnp.any(greedy_B),
        lambda: jnp.where(greedy_B, jnp.argmax(logit_BV, axis=-1), token_B),
        lambda: token_B,
    ).astype(jnp.int32)
    chosen_B = jnp.take_along_axis(shifted_BV, token_B[:, None], axis=-1)[:, 0]
    return token_B, chosen_B - jnp.log(norm_B)


def _inverse_cdf(mass_BV: Array, uniform_B: Array) -> Array:
    """The token at which the running mass passes uniform x total; never a token of mass 0."""
    vocab = mass_BV.shape[-1]
    width = 1 << max(2, math.ceil(math.log2(vocab) / 2))
    mass_BV = jnp.pad(mass_BV, ((0, 0), (0, -vocab % width)))
    mass_BXW = mass_BV.reshape(mass_BV.shape[0], -1, width)
    block_BX = jnp.sum(mass_BXW, axis=-1)
    below_BX = jnp.cumsum(block_BX, axis=-1)
    target_B = uniform_B * below_BX[:, -1]
    block_B = _first_past(below_BX, block_BX, target_B)
    before_B = jnp.take_along_axis(below_BX - block_BX, block_B[:, None], axis=-1)[:, 0]
    inside_BW = jnp.take_along_axis(mass_BXW, block_B[:, None, None], axis=1)[:, 0]
    within_B = _first_past(jnp.cumsum(inside_BW, axis=-1), inside_BW, target_B - before_B)
    return block_B * width + within_B


def _first_past(running_BX: Array, mass_BX: Array, target_B: Array) -> Array:
    """First index of positive mass whose running mass exceeds the target, else the last positive.

    Rounding may leave no index past the target, or put a running sum past it where the mass is 0.
    """
    positive_BX = mass_BX > 0
    index_X = jnp.arange(mass_BX.shape[-1])[None]
    past_BX = positive_BX & (running_BX > target_B[:, None])
    last_B = jnp.max(jnp.where(positive_BX, index_X, 0), axis=-1)
    first_B = jnp.min(jnp.where(past_BX, index_X, mass_BX.shape[-1]), axis=-1)
    return jnp.minimum(first_B, last_B)


def _filtered(logit_BV: Array, mass_BV: Array, params: RowParams) -> Array:
    """`mass_BV` with 0 for every token that top-k, min-p or top-p drops."""
    order_BV = _ordered_bits(logit_BV)
    rank_on = jnp.any(params.top_k_B > 0)
    mass_on = jnp.any(params.top_p_B < 1)
    mass_BV = jax.lax.cond(
        rank_on, lambda m: jnp.where(_top_k(order_BV, params.top_k_B), m, 0.0), lambda m: m, mass_BV
    )
    # The likeliest token has mass 1, whatever top-k dropped.
    mass_BV = jnp.where(mass_BV >= params.min_p_B[:, None], mass_BV, 0.0)
    return jax.lax.cond(
        mass_on,
        lambda m: jnp.where(_top_p(order_BV, m, params.top_p_B), m, 0.0),
        lambda m: m,
        mass_BV,
    )


def _ordered_bits(x: Array) -> Array:
    """uint32 keys that order like the float32 values; -0 and 0 are one key."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _largest_key(enough: Any, batch: int) -> Array:
    """[B] the largest uint32 key for which enough(key_B) holds, by bisection over its bits."""

    def bit(i: Array, key_B: Array) -> Array:
        candidate_B = key_B | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(enough(candidate_B), candidate_B, key_B)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros(batch, jnp.uint32))


def _rank_among_equals(equal_BV: Array) -> Array:
    return jnp.cumsum(equal_BV, axis=-1, dtype=jnp.int32) - equal_BV


def _top_k(order_BV: Array, top_k_B: Array) -> Array:
    """True for the first k tokens by (logit, lower id); for all tokens if k is 0."""

    def count(key_B: Array) -> Array:
        return jnp.sum(order_BV >= key_B[:, None], axis=-1, dtype=jnp.int32)

    kth_B = _largest_key(lambda key_B: count(key_B) >= top_k_B, order_BV.shape[0])
    above_BV, equal_BV = order_BV > kth_B[:, None], order_BV == kth_B[:, None]
    room_B = top_k_B - jnp.sum(above_BV, axis=-1, dtype=jnp.int32)
    keep_BV = above_BV | (equal_BV & (_rank_among_equals(equal_BV) < room_B[:, None]))
    return keep_BV | (top_k_B == 0)[:, None]


def _top_p(order_BV: Array, mass_BV: Array, top_p_B: Array) -> Array:
    """True for tokens with less than top_p of the mass before them; for all if top_p is 1."""
    wanted_B = top_p_B * jnp.sum(mass_BV, axis=-1)

    def mass_from(key_B: Array) -> Array:
        return jnp.sum(jnp.where(order_BV >= key_B[:, None], mass_BV, 0.0), axis=-1)

    border_B = _largest_key(lambda key_B: mass_from(key_B) >= wanted_B, order_BV.shape[0])
    above_BV, equal_BV = order_BV > border_B[:, None], order_BV == border_B[:, None]
    equal_BV = equal_BV & (mass_BV > 0)
    before_B = jnp.sum(jnp.where(above_BV, mass_BV, 0.0), axis=-1)
    step_B = jnp.max(jnp.where(equal_BV, mass_BV, 0.0), axis=-1)
    before_BV = before_B[:, None] + _rank_among_equals(equal_BV) * step_B[:, None]
    keep_BV = above_BV | (equal_BV & (before_BV < wanted_B[:, None]))
    return keep_BV | (top_p_B >= 1)[:, None]
