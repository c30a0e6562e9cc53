"""Decode kernels in C++ for a CPU, as jax functions: packed products and paged attention.

XLA packs the matrices of a product in every call and copies pages before it attends to them. These
kernels do neither. They are compiled on the machine that runs them, if it has a C++ compiler, and
called by XLA's FFI; `load` must have been called before one is used.

Float32, on one CPU device, forward only. A row's result is the same bits whatever rows are beside
it and wherever its decode call began.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from polaris_jax.rollout.kv import Pool
from polaris_jax.rollout.kv.staged import Staged
from polaris_jax.rollout.native.build import (
    ATTENTION,
    DRAW,
    PACK,
    PRODUCT,
    ZEROS,
    BuildFailed,
    load,
)

__all__ = [
    "DRAWN_VOCABS",
    "BuildFailed",
    "attend_staged",
    "draw",
    "load",
    "pack",
    "packed_product",
    "unpacked",
    "zeros",
]

PANEL_COLUMNS = 32  # kPanel in product.h
DRAWN_VOCABS = range((1 << 14) + 1, (1 << 20) + 1)  # sizes whose blocks `draw` sums as XLA does


def zeros(shape: tuple[int, ...]) -> Array:
    """Float32 zeros, on large pages of memory if the system has them."""
    return jax.ffi.ffi_call(ZEROS, jax.ShapeDtypeStruct(shape, jnp.float32))()


def pack(weight_LDX: Array) -> Array:
    """[L, P, D, 32]: panels of 32 columns, each contiguous; the last is filled up with zeros."""
    layers, width, columns = weight_LDX.shape
    panels = -(-columns // PANEL_COLUMNS)
    out = jax.ShapeDtypeStruct((layers, panels, width, PANEL_COLUMNS), jnp.float32)
    return jax.ffi.ffi_call(PACK, out)(weight_LDX)


def unpacked(panel_PDC: Array, *, columns: int) -> Array:
    """[D, X]: the matrix of one layer of `pack`."""
    _, width, _ = panel_PDC.shape
    return panel_PDC.swapaxes(0, 1).reshape(width, -1)[:, :columns]


def packed_product(layer: Array | int, x_MD: Array, panel_LPDC: Array, *, columns: int) -> Array:
    """[M, X]: `x_MD` times the matrix of layer `layer`.

    Args:
        layer: int32 index.
        x_MD: float32 inputs.
        panel_LPDC: result of `pack`.
        columns: X.
    """
    out = jax.ShapeDtypeStruct((x_MD.shape[0], columns), jnp.float32)
    return jax.ffi.ffi_call(PRODUCT, out)(jnp.int32(layer), x_MD, panel_LPDC)


def attend_staged(
    layer: Array,
    q_BNH: Array,
    staged: Staged,
    pool: Pool,
    step: Array,
    cached_B: Array,
    table_BJ: Array,
) -> Array:
    """`kv.staged.attend_staged` once the step's token is staged: out_BNH, pages read in place."""
    out = jax.ShapeDtypeStruct(q_BNH.shape, jnp.float32)
    return jax.ffi.ffi_call(ATTENTION, out)(
        jnp.int32(layer), jnp.int32(step), q_BNH, *staged, *pool, cached_B, table_BJ
    )


def draw(logit_BV: Array, uniform_B: Array, temperature_B: Array) -> tuple[Array, Array, Array]:
    """A token of each row by `programs.draw`'s rule, without filters.

    Tokens are XLA's: the kernel's exp and sums over blocks make the same bits. So does the sum over
    V, except in its last bits where XLA takes another order: for fewer than 4 rows, which it splits
    among threads, and if more than 32 tokens are left behind the last 64.

    Args:
        logit_BV: float32 logits; V is one of `DRAWN_VOCABS`.
        uniform_B: in [0, 1).
        temperature_B: 0 takes the likeliest token.

    Returns:
        (token_B, distance_B, norm_B): int32 tokens, their (logit - greatest logit) / temperature,
        and the sum over V of exp of the same. Temperature 1 if it is 0.
    """
    batch, _ = logit_BV.shape
    numbers = jax.ShapeDtypeStruct((batch,), jnp.float32)
    out = (jax.ShapeDtypeStruct((batch,), jnp.int32), numbers, numbers)
    return jax.ffi.ffi_call(DRAW, out)(logit_BV, uniform_B, temperature_B)
