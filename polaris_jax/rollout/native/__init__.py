"""Decode kernels in C++ for a CPU, as jax functions: packed products and paged attention.

XLA packs the matrices of a product in every call and copies pages before it attends to them. These
kernels do neither. They are compiled on the machine that runs them, if it has a C++ compiler, and
called by XLA's FFI; `load` must have been called before one is used.

On one CPU device, forward only, with weights and pages in float32 or, on a CPU with AVX512-BF16, in
bfloat16, which are held as bits (`kv.bits`); sums are float32. A row's result is the same bits
whatever rows are beside it and wherever its decode call began.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from polaris_jax.rollout.kv import Pool
from polaris_jax.rollout.kv.bits import held, held_dtype, numbers
from polaris_jax.rollout.kv.staged import Staged
from polaris_jax.rollout.native.build import (
    ATTENTION,
    DRAW,
    PACK,
    PRODUCT,
    ZEROS,
    BuildFailed,
    load,
    multiplies_bfloat16,
)

__all__ = [
    "DRAWN_VOCABS",
    "BuildFailed",
    "attend_drafted",
    "attend_staged",
    "columns_of",
    "draw",
    "load",
    "multiplies_bfloat16",
    "pack",
    "packed_product",
    "unpacked",
    "zeros",
]

PANEL_COLUMNS = 32  # kPanel in product.h
DRAWN_VOCABS = range((1 << 14) + 1, (1 << 20) + 1)  # sizes whose blocks `draw` sums as XLA does


def zeros(shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Zeros, on large pages if the system has them; on Linux they take memory when used."""
    return jax.ffi.ffi_call(ZEROS, jax.ShapeDtypeStruct(shape, dtype))()


def pack(weight_LDX: Array) -> Array:
    """Panels of 32 columns, each contiguous; the last is filled up with zeros.

    [L, P, D, 32] of float32. Of bfloat16, bits whose two rows lie side by side:
    [L, P, ceil(D / 2), 32, 2].
    """
    weight_LDX = jnp.pad(weight_LDX, ((0, 0), (0, _odd(weight_LDX)), (0, 0)))
    layers, width, columns = weight_LDX.shape
    panels, dtype = -(-columns // PANEL_COLUMNS), weight_LDX.dtype
    shape = (layers, panels, width, PANEL_COLUMNS)
    if dtype == jnp.bfloat16:
        shape = (layers, panels, width // 2, PANEL_COLUMNS, 2)
    return jax.ffi.ffi_call(PACK, jax.ShapeDtypeStruct(shape, held_dtype(dtype)))(weight_LDX)


def unpacked(panel_PDC: Array, *, rows: int, columns: int) -> Array:
    """[D, X]: the matrix of one layer of `pack`.

    Args:
        panel_PDC: the layer's panels.
        rows: D.
        columns: X.
    """
    if panel_PDC.dtype == held_dtype(jnp.bfloat16):
        panels, _, size, _ = panel_PDC.shape
        panel_PDC = panel_PDC.swapaxes(2, 3).reshape(panels, -1, size)
    width = panel_PDC.shape[1]
    return numbers(panel_PDC.swapaxes(0, 1).reshape(width, -1)[:rows, :columns])


def columns_of(panel_PDC: Array, index: Array, *, rows: int) -> Array:
    """[..., D]: columns of the matrix of one layer of `pack`.

    Args:
        panel_PDC: the layer's panels.
        index: indices of the columns, any shape.
        rows: D.
    """
    found = panel_PDC[index // PANEL_COLUMNS, :, index % PANEL_COLUMNS]
    return numbers(found.reshape(*index.shape, -1)[..., :rows])


def packed_product(
    layer: Array | int,
    x_MD: Array,
    panel_LPDC: Array,
    *,
    columns: int,
    rows: Array | None = None,
) -> Array:
    """[M, X] in float32: `x_MD` times the matrix of layer `layer`.

    Args:
        layer: int32 index.
        x_MD: inputs, of the dtype of the matrices.
        panel_LPDC: result of `pack`.
        columns: X.
        rows: int32 indices of the rows that count, ascending; the first one of M or more ends the
            list. Other rows are zeros and cost nothing. None: all count.
    """
    rows = jnp.arange(x_MD.shape[0], dtype=jnp.int32) if rows is None else rows
    out = jax.ShapeDtypeStruct((x_MD.shape[0], columns), jnp.float32)
    x_MD = jnp.pad(x_MD, ((0, 0), (0, _odd(x_MD))))
    return jax.ffi.ffi_call(PRODUCT, out)(jnp.int32(layer), rows, x_MD, panel_LPDC)


def _odd(x: Array) -> int:
    """Rows of zeros that bfloat16 matrices and inputs need, so that rows come in pairs."""
    return x.shape[1] % 2 if x.dtype == jnp.bfloat16 else 0


def attend_staged(
    layer: Array,
    q_BNH: Array,
    staged: Staged,
    pool: Pool,
    step: Array,
    cached_B: Array,
    table_BJ: Array,
    queries_B: Array | None = None,
) -> Array:
    """`kv.staged.attend_staged` once the step's token is staged: out_BNH, pages read in place.

    A row may have several queries, one behind the other in `q_BNH`. Each sees one staged token more
    than the one before. Only a row's first `queries_B` count, by default all; others give zeros.
    """
    if queries_B is None:
        batch = cached_B.shape[0]
        queries_B = jnp.full(batch, q_BNH.shape[0] // batch, jnp.int32)
    out = jax.ShapeDtypeStruct(q_BNH.shape, jnp.float32)
    out_BNH = jax.ffi.ffi_call(ATTENTION, out)(
        jnp.int32(layer),
        jnp.int32(step),
        queries_B,
        q_BNH.astype(jnp.float32),
        *staged,
        *pool,
        cached_B,
        table_BJ,
    )
    return out_BNH.astype(q_BNH.dtype)


def attend_drafted(
    layer: Array,
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    staged: Staged,
    pool: Pool,
    cached_B: Array,
    table_BJ: Array,
    queries_B: Array,
) -> tuple[Array, Staged]:
    """Stages T tokens a row; each attends to the row's pages and to staged tokens up to itself.

    Args:
        layer: index of the layer.
        q_BTNH: queries, rotary positions applied.
        k_BTKH: new keys.
        v_BTKH: new values.
        staged: the call's keys and values, with room for T tokens a row.
        pool: the page pool, which is only read.
        cached_B: tokens of each row in its pages.
        table_BJ: pages of each row.
        queries_B: tokens of each row that count; the others attend to nothing and give zeros.

    Returns:
        (out_BTNH, staged).
    """
    k_BKHT = held(jnp.moveaxis(k_BTKH, 1, 3), staged.k_LBKHT.dtype)
    v_BKTH = held(jnp.swapaxes(v_BTKH, 1, 2), staged.v_LBKTH.dtype)
    staged = Staged(
        jax.lax.dynamic_update_index_in_dim(staged.k_LBKHT, k_BKHT, layer, 0),
        jax.lax.dynamic_update_index_in_dim(staged.v_LBKTH, v_BKTH, layer, 0),
    )
    q_XNH = q_BTNH.reshape(-1, *q_BTNH.shape[2:])
    out_XNH = attend_staged(layer, q_XNH, staged, pool, jnp.int32(0), cached_B, table_BJ, queries_B)
    return out_XNH.reshape(q_BTNH.shape), staged


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
    token_B, distance_B, norm_B = jax.ffi.ffi_call(DRAW, out)(logit_BV, uniform_B, temperature_B)
    return token_B, distance_B, norm_B
