"""Layouts of the pages in the pool, and attention over each.

    xla         kv.Pool; reference on every platform, the only one on a CPU. On a TPU it has
                the pages of `ragged`: with the others the compiler makes copies of the pool
    ragged      TPU: jax's `ragged_paged_attention`; keys and values of a head side by side
    pallas_gpu  GPU: jax's Pallas `paged_attention`; KV heads outermost

Each has a second form for 8-bit keys and values (`kv.int8`). All but `ragged` keep a scale for each
token and head; jax's TPU kernel knows constants alone, so its scales are `layout.steps`.

A layout is private to rollout/: nothing outside sees the pool. Each is a `KVLayout` of plain
functions on its own pool; heads may be one tensor shard's.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from polaris_jax.models.config import ModelConfig
from polaris_jax.rollout import kv
from polaris_jax.rollout.kv import int8
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
    scale_ZYC: Any = None


class HeadMajorPool(NamedTuple):
    """Pages of all layers, KV heads outermost."""

    k_KZYH: Any
    v_KZYH: Any
    k_scale_KZY: Any = None
    v_scale_KZY: Any = None


@dataclasses.dataclass(frozen=True)
class KVLayout:
    """One way to lay out pages, and attention over it.

    Attributes:
        page_axis: page axis of every array of the pool; L*Z pages, layer by layer.
        head_axis: head axis of every array of the pool.
        shapes: (KV heads, head width, L*Z, Y) -> the pool with shapes in place of arrays. Fields
            named "scale" are float32.
        attend: like `kv.attend_pages`, for any number of queries a row.
        attend_one: like `attend`, for exactly one query a row.
        block_tokens: keys that one step of the kernel's inner loop covers. The kernel reads a
            row's last block completely. 0: no kernel.
        stages: True if `kv.staged` can read the pages.
        kv_dtype: "int8": keys and values are 8-bit numbers; "": they have the weights' dtype.
        steps: weights -> float32 [L, 2K], the constant scales of keys and values in turn, which
            `attend` then takes as `step_LC`; None: `attend` takes none.
    """

    page_axis: int
    head_axis: int
    shapes: Callable[[int, int, int, int], Any]
    attend: Callable[..., tuple[Array, Any]]
    attend_one: Callable[..., tuple[Array, Any]]
    block_tokens: int = 0
    stages: bool = False
    kv_dtype: str = ""
    steps: Callable[[Any], Array] | None = None

    def abstract_pool(
        self, config: ModelConfig, *, num_pages: int, page_size: int, dtype: DTypeLike
    ) -> Any:
        """The pool with ShapeDtypeStructs in place of arrays; `dtype` is that of the weights."""
        pool = self.shapes(
            config.num_kv_heads, config.head_dim, config.num_layers * num_pages, page_size
        )
        pages = jnp.dtype(self.kv_dtype or dtype)

        def array(name: str, shape: tuple[int, ...] | None) -> Any:
            own = jnp.dtype(jnp.float32) if "scale" in name else pages
            return None if shape is None else jax.ShapeDtypeStruct(shape, own)

        return type(pool)(*map(array, pool._fields, pool))

    def token_bytes(self, config: ModelConfig, dtype: DTypeLike) -> int:
        """Bytes of a token's keys and values, with their scales, of all layers and heads."""
        pool = self.abstract_pool(config, num_pages=1, page_size=1, dtype=dtype)
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(pool))


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
    step_LC: Array | None = None,
    kernel: Callable[..., Array] | None = None,
) -> tuple[Array, RaggedPool]:
    """`kv.attend_pages` through jax's TPU kernel.

    Padding queries are computed too, at positions after the row's; only their outputs are wrong.

    Args:
        step_LC: constant scales of 8-bit keys and values. The kernel's own would be one for all
            layers, so the keys' are part of the queries here and the values' of the output.
        kernel: a stand-in with the arguments of `ragged_paged_attention`, for tests.
    """
    batch, length, num_heads, width = q_BTNH.shape
    rows, page_size = pool.kv_ZYCH.shape[:2]
    base = layer * (rows // num_layers)
    step_C = None if step_LC is None else step_LC[layer]
    pool = _write_ragged(base, k_BTKH, v_BTKH, pool, position_BT, live_BT, table_BJ, step_C)
    dtype, scales, v_step_NH = q_BTNH.dtype, {}, None
    if step_C is not None:
        step_NC = jnp.repeat(step_C.reshape(-1, 2), num_heads // k_BTKH.shape[2], axis=0)
        k_step_NH, v_step_NH = step_NC[:, :1], step_NC[:, 1:]
        q_BTNH = (q_BTNH * k_step_NH[None, None]).astype(dtype)
        scales = {"k_scale": 1.0, "v_scale": 1.0}  # without them it takes the dot of 8-bit keys
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
        **scales,
    )
    out_BTNH = out.reshape(q_BTNH.shape)
    if v_step_NH is not None:
        out_BTNH = (out_BTNH * v_step_NH[None, None]).astype(dtype)
    return out_BTNH, pool


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
        if pool.scale_ZYC is not None:
            kv_BJYCH = kv_BJYCH * pool.scale_ZYC[base + page_BJ][..., None]
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
    step_C: Array | None = None,
) -> RaggedPool:
    page_size, heads2, width = pool.kv_ZYCH.shape[1:]
    page_BT, offset_BT = kv.page_of_tokens(table_BJ, position_BT, live_BT, page_size)
    kv_BTCH = jnp.stack([k_BTKH, v_BTKH], axis=3).reshape(*k_BTKH.shape[:2], heads2, width)
    page_BT = base + page_BT
    if pool.kv_ZYCH.dtype == jnp.int8:
        step_BTC = None if step_C is None else jnp.broadcast_to(step_C, kv_BTCH.shape[:-1])
        kv_BTCH, scale_BTC = int8.quantise(kv_BTCH, step_BTC)
        if pool.scale_ZYC is not None:
            pool = pool._replace(scale_ZYC=pool.scale_ZYC.at[page_BT, offset_BT].set(scale_BTC))
    return pool._replace(kv_ZYCH=pool.kv_ZYCH.at[page_BT, offset_BT].set(kv_BTCH))


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
        if pool.k_scale_KZY is not None:
            k_KBJYH = k_KBJYH * pool.k_scale_KZY[:, base + page_BJ][..., None]
            v_KBJYH = v_KBJYH * pool.v_scale_KZY[:, base + page_BJ][..., None]
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
        pool.k_scale_KZY,
        pool.v_scale_KZY,
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
    k_BTKH, v_BTKH = kv.with_finite_values(k_BTKH, v_BTKH)
    k_KBTH, v_KBTH = jnp.moveaxis(k_BTKH, 2, 0), jnp.moveaxis(v_BTKH, 2, 0)
    if pool.k_scale_KZY is not None:
        (k_KBTH, k_scale_KBT), (v_KBTH, v_scale_KBT) = int8.quantise(k_KBTH), int8.quantise(v_KBTH)
        pool = pool._replace(
            k_scale_KZY=pool.k_scale_KZY.at[:, page_BT, offset_BT].set(k_scale_KBT),
            v_scale_KZY=pool.v_scale_KZY.at[:, page_BT, offset_BT].set(v_scale_KBT),
        )
    return pool._replace(
        k_KZYH=pool.k_KZYH.at[:, page_BT, offset_BT].set(k_KBTH),
        v_KZYH=pool.v_KZYH.at[:, page_BT, offset_BT].set(v_KBTH),
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


# --- the same with 8-bit keys and values ---


def _int8(layout: KVLayout, turn: Callable[[Array], Array], **changed: Any) -> KVLayout:
    return dataclasses.replace(
        layout,
        attend=int8.rotated(layout.attend, turn),
        attend_one=int8.rotated(layout.attend_one, turn),
        kv_dtype="int8",
        **changed,
    )


XLA_INT8 = _int8(
    XLA,
    int8.rotate,
    shapes=lambda k, h, z, y: kv.ScaledPool((z, k, h, y), (z, k, y, h), (z, k, y), (z, k, y)),
)
RAGGED_INT8 = _int8(RAGGED, int8.rotate_by_product, steps=int8.constant_steps)
TOKEN_MAJOR_INT8 = _int8(
    TOKEN_MAJOR,
    int8.rotate_by_product,
    shapes=lambda k, h, z, y: RaggedPool((z, y, 2 * k, h), (z, y, 2 * k)),
)
PALLAS_GPU_INT8 = _int8(
    PALLAS_GPU,
    int8.rotate_by_product,
    shapes=lambda k, h, z, y: HeadMajorPool((k, z, y, h), (k, z, y, h), (k, z, y), (k, z, y)),
)
