"""Layouts of the pages in the pool, and attention over each.

    xla         kv.Pool; reference on every platform, the only one on a CPU. On a TPU it has
                the pages of `ragged`: with the others the compiler makes copies of the pool
    ragged      TPU: jax's `ragged_paged_attention`; keys and values of a head side by side
    pallas_gpu  GPU: jax's Pallas `paged_attention`; KV heads outermost

A layout is private to rollout/: nothing outside sees the pool. Each is a `KVLayout` of plain
functions on its own pool; heads may be one tensor shard's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from polaris_jax.models.config import ModelConfig
from polaris_jax.rollout import kv
from polaris_jax.rollout.pages import pages_for

# What one step of a kernel's inner loop covers.
RAGGED_BLOCK_TOKENS = 512
RAGGED_BLOCK_QUERIES = 32
RAGGED_VMEM_BYTES = 64 << 20
GPU_BLOCK_TOKENS = 64
GPU_SPLITS = 16


class RaggedPool(NamedTuple):
    """Pages of all layers; C = 2K: key and value of each KV head in turn."""

    kv_ZYCH: Any


class HeadMajorPool(NamedTuple):
    """Pages of all layers, KV heads outermost."""

    k_KZYH: Any
    v_KZYH: Any


@dataclasses.dataclass(frozen=True)
class KVLayout:
    """One way to lay out pages, and attention over it.

    Attributes:
        page_axis: page axis of every array of the pool; L*Z pages, layer by layer.
        head_axis: head axis of every array of the pool.
        shapes: (KV heads, head width, L*Z, Y) -> the pool with shapes in place of arrays.
        attend: like `kv.attend_pages`, for any number of queries a row.
        attend_one: like `attend`, for exactly one query a row.
        block_tokens: keys that one step of the kernel's inner loop covers. The kernel reads a
            row's last block completely. 0: no kernel.
        stages: True if `kv.staged` can read the pages.
    """

    page_axis: int
    head_axis: int
    shapes: Callable[[int, int, int, int], Any]
    attend: Callable[..., tuple[Array, Any]]
    attend_one: Callable[..., tuple[Array, Any]]
    block_tokens: int = 0
    stages: bool = False

    def abstract_pool(
        self, config: ModelConfig, *, num_pages: int, page_size: int, dtype: DTypeLike
    ) -> Any:
        """The pool with ShapeDtypeStructs in place of arrays."""
        shapes = self.shapes(
            config.num_kv_heads, config.head_dim, config.num_layers * num_pages, page_size
        )
        return jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)),
            shapes,
            is_leaf=lambda x: type(x) is tuple,
        )


# --- ragged: TPU ---


def attend_ragged(
    layer: Array,
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    pool: RaggedPool,
    *,
    position_BT: Array,
    live_BT: Array,
    table_BJ: Array,
    num_layers: int,
    kernel: Callable[..., Array] | None = None,
) -> tuple[Array, RaggedPool]:
    """`kv.attend_pages` through jax's TPU kernel.

    Padding queries are computed too, at positions after the row's; only their outputs are wrong.

    Args:
        kernel: a stand-in with the arguments of `ragged_paged_attention`, for tests.
    """
    batch, length, num_heads, width = q_BTNH.shape
    rows, page_size = pool.kv_ZYCH.shape[:2]
    base = layer * (rows // num_layers)
    pool = _write_ragged(base, k_BTKH, v_BTKH, pool, position_BT, live_BT, table_BJ)
    # Padding may reach beyond the last page of a row.
    table_BJ = jnp.pad(table_BJ, ((0, 0), (0, pages_for(length - 1, page_size))))
    if kernel is None:
        from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

        kernel = functools.partial(
            ragged_paged_attention,
            num_kv_pages_per_block=min(table_BJ.shape[1], max(1, RAGGED_BLOCK_TOKENS // page_size)),
            num_queries_per_block=min(batch * length, RAGGED_BLOCK_QUERIES),
            vmem_limit_bytes=RAGGED_VMEM_BYTES,
        )
    out = kernel(
        q_BTNH.reshape(batch * length, num_heads, width),
        pool.kv_ZYCH,
        position_BT[:, 0] + length,
        base + table_BJ,
        length * jnp.arange(batch + 1, dtype=jnp.int32),
        jnp.array([batch], jnp.int32),
        sm_scale=width**-0.5,
    )
    return out.reshape(q_BTNH.shape), pool


def attend_token_major(
    layer: Array,
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    pool: RaggedPool,
    *,
    position_BT: Array,
    live_BT: Array,
    table_BJ: Array,
    num_layers: int,
) -> tuple[Array, RaggedPool]:
    """`kv.attend_pages` on the pages of `ragged`, without a kernel."""
    rows, page_size, heads2, _ = pool.kv_ZYCH.shape
    base = layer * (rows // num_layers)
    pool = _write_ragged(base, k_BTKH, v_BTKH, pool, position_BT, live_BT, table_BJ)

    def read(page_BJ: Array) -> tuple[Array, Array]:
        kv_BJYCH = pool.kv_ZYCH[base + page_BJ]
        k_BJYKH, v_BJYKH = kv_BJYCH[..., 0::2, :], kv_BJYCH[..., 1::2, :]
        return jnp.transpose(k_BJYKH, (0, 1, 3, 4, 2)), jnp.swapaxes(v_BJYKH, 2, 3)

    out_BTNH = kv.attend_blocks(
        q_BTNH,
        read,
        num_kv=heads2 // 2,
        page_size=page_size,
        position_BT=position_BT,
        live_BT=live_BT,
        table_BJ=table_BJ,
    )
    return out_BTNH, pool


def _write_ragged(
    base: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    pool: RaggedPool,
    position_BT: Array,
    live_BT: Array,
    table_BJ: Array,
) -> RaggedPool:
    page_size, heads2, width = pool.kv_ZYCH.shape[1:]
    page_BT, offset_BT = kv.page_of_tokens(table_BJ, position_BT, live_BT, page_size)
    kv_BTCH = jnp.stack([k_BTKH, v_BTKH], axis=3).reshape(*k_BTKH.shape[:2], heads2, width)
    return RaggedPool(pool.kv_ZYCH.at[base + page_BT, offset_BT].set(kv_BTCH))


# --- pallas_gpu ---


def attend_head_major(
    layer: Array,
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    pool: HeadMajorPool,
    *,
    position_BT: Array,
    live_BT: Array,
    table_BJ: Array,
    num_layers: int,
) -> tuple[Array, HeadMajorPool]:
    """`kv.attend_pages` on pages with KV heads outermost."""
    num_kv, rows, page_size, _ = pool.k_KZYH.shape
    base = layer * (rows // num_layers)
    pool = _write_head_major(base, k_BTKH, v_BTKH, pool, position_BT, live_BT, table_BJ)

    def read(page_BJ: Array) -> tuple[Array, Array]:
        k_KBJYH, v_KBJYH = pool.k_KZYH[:, base + page_BJ], pool.v_KZYH[:, base + page_BJ]
        return jnp.transpose(k_KBJYH, (1, 2, 0, 4, 3)), jnp.moveaxis(v_KBJYH, 0, 2)

    out_BTNH = kv.attend_blocks(
        q_BTNH,
        read,
        num_kv=num_kv,
        page_size=page_size,
        position_BT=position_BT,
        live_BT=live_BT,
        table_BJ=table_BJ,
    )
    return out_BTNH, pool


def attend_pallas_gpu(
    layer: Array,
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    pool: HeadMajorPool,
    *,
    position_BT: Array,
    live_BT: Array,
    table_BJ: Array,
    num_layers: int,
    interpret: bool = False,
) -> tuple[Array, HeadMajorPool]:
    """`kv.attend_pages` for one query a row, through jax's Pallas GPU kernel.

    Args:
        interpret: run the kernel's body as plain jax operations, for tests.
    """
    from jax.experimental.pallas.ops.gpu.paged_attention import paged_attention

    rows, page_size, width = pool.k_KZYH.shape[1:]
    base = layer * (rows // num_layers)
    pool = _write_head_major(base, k_BTKH, v_BTKH, pool, position_BT, live_BT, table_BJ)
    block_pages = max(1, GPU_BLOCK_TOKENS // page_size)
    splits = min(GPU_SPLITS, -(-table_BJ.shape[1] // block_pages))
    table_BJ = jnp.pad(table_BJ, ((0, 0), (0, -table_BJ.shape[1] % (splits * block_pages))))
    out_BNH = paged_attention(
        q_BTNH[:, 0] * jnp.asarray(width**-0.5, q_BTNH.dtype),
        pool.k_KZYH,
        pool.v_KZYH,
        base + table_BJ,
        jnp.where(live_BT[:, 0], position_BT[:, 0] + 1, 0),
        pages_per_compute_block=block_pages,
        k_splits=splits,
        interpret=interpret,
    )
    return out_BNH[:, None], pool


def _write_head_major(
    base: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    pool: HeadMajorPool,
    position_BT: Array,
    live_BT: Array,
    table_BJ: Array,
) -> HeadMajorPool:
    page_size = pool.k_KZYH.shape[2]
    page_BT, offset_BT = kv.page_of_tokens(table_BJ, position_BT, live_BT, page_size)
    page_BT = base + page_BT
    return HeadMajorPool(
        pool.k_KZYH.at[:, page_BT, offset_BT].set(jnp.moveaxis(k_BTKH, 2, 0)),
        pool.v_KZYH.at[:, page_BT, offset_BT].set(jnp.moveaxis(v_BTKH, 2, 0)),
    )


# --- the layouts ---

XLA = KVLayout(
    page_axis=0,
    head_axis=1,
    shapes=lambda k, h, z, y: kv.Pool((z, k, h, y), (z, k, y, h)),
    attend=kv.attend_pages,
    attend_one=kv.attend_pages,
    stages=True,
)
RAGGED = KVLayout(
    page_axis=0,
    head_axis=2,
    shapes=lambda k, h, z, y: RaggedPool((z, y, 2 * k, h)),
    attend=attend_ragged,
    attend_one=attend_ragged,
    block_tokens=RAGGED_BLOCK_TOKENS,
)
TOKEN_MAJOR = dataclasses.replace(
    RAGGED,
    attend=attend_token_major,
    attend_one=attend_token_major,
    block_tokens=0,
)
PALLAS_GPU = KVLayout(
    page_axis=1,
    head_axis=0,
    shapes=lambda k, h, z, y: HeadMajorPool((k, z, y, h), (k, z, y, h)),
    attend=attend_head_major,
    attend_one=attend_pallas_gpu,
    block_tokens=GPU_BLOCK_TOKENS,
)
