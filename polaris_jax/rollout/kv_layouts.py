"""How pages lie in the pool, by attention back end, and what each back end can serve.

    xla         paged_kv.Pool; reference on every platform, the only one on a CPU
    ragged      TPU: jax's `ragged_paged_attention`; keys and values of a head side by side
    pallas_gpu  GPU: jax's Pallas `paged_attention`; KV heads outermost

A layout is private to rollout/: nothing outside sees the pool. Each is a `KVLayout` of plain
functions on its own pool; heads may be one tensor shard's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from polaris_jax.config import ConfigError
from polaris_jax.models.config import ModelConfig
from polaris_jax.rollout import paged_kv
from polaris_jax.rollout.paged_kv import pages_for

Attention = Literal["auto", "xla", "ragged", "pallas_gpu"]

# Scalar memory of a TPU core, into which `ragged_paged_attention` fetches the whole page table.
SMEM_BYTES = 1 << 20
# What one step of a kernel's inner loop covers.
RAGGED_BLOCK_TOKENS = 512
RAGGED_BLOCK_QUERIES = 32
RAGGED_VMEM_BYTES = 64 << 20
GPU_BLOCK_TOKENS = 64
GPU_SPLITS = 16
# Rows of the smallest matrix that a GPU's tensor cores take.
GPU_MIN_DOT = 16


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
        name: of the back end.
        page_axis: of every array of the pool; L*Z pages, layer by layer.
        head_axis: of every array of the pool.
        shapes: (KV heads, head width, L*Z, Y) -> the pool with shapes in place of arrays.
        attend: as `paged_kv.attend_pages`, for any number of queries a row.
        attend_one: the same where every row has one query.
    """

    name: str
    page_axis: int
    head_axis: int
    shapes: Callable[[int, int, int, int], Any]
    attend: Callable[..., tuple[Array, Any]]
    attend_one: Callable[..., tuple[Array, Any]]

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
    """`paged_kv.attend_pages` through jax's TPU kernel.

    Padding queries take part, at positions after the row's; only their own outputs are wrong.

    Args:
        kernel: a stand-in with the arguments of `ragged_paged_attention`, for tests.
    """
    batch, length, num_heads, width = q_BTNH.shape
    rows, page_size, heads2, _ = pool.kv_ZYCH.shape
    base = layer * (rows // num_layers)
    page_BT, offset_BT = paged_kv.page_of_tokens(table_BJ, position_BT, live_BT, page_size)
    kv_BTCH = jnp.stack([k_BTKH, v_BTKH], axis=3).reshape(batch, length, heads2, width)
    pool = RaggedPool(pool.kv_ZYCH.at[base + page_BT, offset_BT].set(kv_BTCH))
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


def smem_bytes(rows: int, pages: int) -> int:
    """Scalar memory of a `ragged` decode call: page table, lengths, query offsets."""
    return 4 * (rows * pages + 2 * rows + 1)


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
    """`paged_kv.attend_pages` on pages with KV heads outermost."""
    num_kv, rows, page_size, _ = pool.k_KZYH.shape
    base = layer * (rows // num_layers)
    pool = _write_head_major(base, k_BTKH, v_BTKH, pool, position_BT, live_BT, table_BJ)

    def read(page_BJ: Array) -> tuple[Array, Array]:
        k_KBJYH, v_KBJYH = pool.k_KZYH[:, base + page_BJ], pool.v_KZYH[:, base + page_BJ]
        return jnp.transpose(k_KBJYH, (1, 2, 0, 4, 3)), jnp.moveaxis(v_KBJYH, 0, 2)

    out_BTNH = paged_kv.attend_blocks(
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
    """`paged_kv.attend_pages` for one query a row, through jax's Pallas GPU kernel.

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
    page_BT, offset_BT = paged_kv.page_of_tokens(table_BJ, position_BT, live_BT, page_size)
    page_BT = base + page_BT
    return HeadMajorPool(
        pool.k_KZYH.at[:, page_BT, offset_BT].set(jnp.moveaxis(k_BTKH, 2, 0)),
        pool.v_KZYH.at[:, page_BT, offset_BT].set(jnp.moveaxis(v_BTKH, 2, 0)),
    )


# --- the choice ---

XLA = KVLayout(
    "xla",
    page_axis=0,
    head_axis=1,
    shapes=lambda k, h, z, y: paged_kv.Pool((z, k, h, y), (z, k, y, h)),
    attend=paged_kv.attend_pages,
    attend_one=paged_kv.attend_pages,
)
RAGGED = KVLayout(
    "ragged",
    page_axis=0,
    head_axis=2,
    shapes=lambda k, h, z, y: RaggedPool((z, y, 2 * k, h)),
    attend=attend_ragged,
    attend_one=attend_ragged,
)
PALLAS_GPU = KVLayout(
    "pallas_gpu",
    page_axis=1,
    head_axis=0,
    shapes=lambda k, h, z, y: HeadMajorPool((k, z, y, h), (k, z, y, h)),
    attend=attend_head_major,
    attend_one=attend_pallas_gpu,
)
RAGGED_HEAD_DIM = 128


def choose_layout(
    attention: Attention,
    platform: str,
    config: ModelConfig,
    *,
    page_size: int,
    rows: int,
    pages: int,
) -> KVLayout:
    """The layout of a back end; `auto` is the platform's kernel where the model's shape allows it.

    Args:
        attention: the back end asked for.
        platform: of the devices: "cpu", "tpu", "gpu" (or "cuda").
        config: the architecture.
        page_size: Y.
        rows: of the largest decode call of a data shard.
        pages: J, pages of the longest sequence.

    Raises:
        ConfigError: a back end that the platform, the model or these sizes do not allow.
    """
    on_gpu = platform in ("gpu", "cuda", "rocm")
    if attention == "auto":
        if platform == "tpu" and config.head_dim == RAGGED_HEAD_DIM:
            attention = "ragged"
        elif on_gpu and _is_power_of_2(page_size) and _is_power_of_2(config.head_dim):
            attention = "pallas_gpu"
        else:
            attention = "xla"
    if attention == "ragged":
        _check_ragged(platform, config, page_size=page_size, rows=rows, pages=pages)
        return RAGGED
    if attention == "pallas_gpu":
        _check_pallas_gpu(on_gpu, platform, config, page_size)
        return PALLAS_GPU
    if attention != "xla":
        raise ConfigError(
            f"rollout.attention={attention!r}: expected auto, xla, ragged (TPU) or pallas_gpu (GPU)"
        )
    return XLA


def _check_ragged(
    platform: str, config: ModelConfig, *, page_size: int, rows: int, pages: int
) -> None:
    if platform != "tpu":
        raise ConfigError(
            f"rollout.attention='ragged': a TPU kernel, the devices are {platform}; use auto"
        )
    if config.head_dim != RAGGED_HEAD_DIM:
        raise ConfigError(
            f"rollout.attention='ragged': needs head_dim={RAGGED_HEAD_DIM}, the model has "
            f"{config.head_dim}; use xla"
        )
    needed = smem_bytes(rows, pages)
    if needed >= SMEM_BYTES:
        tokens, fitting = pages * page_size, 2 * page_size
        while fitting < tokens and smem_bytes(rows, pages_for(tokens, fitting)) >= SMEM_BYTES:
            fitting *= 2
        raise ConfigError(
            f"rollout.page_size={page_size}: the page table of {rows} slots x {pages} pages x 4 "
            f"bytes = {needed} bytes (with lengths) does not fit the {SMEM_BYTES} bytes of scalar "
            f"memory of rollout.attention='ragged'; use rollout.page_size={fitting}, fewer slots "
            "a data shard, or xla"
        )


def _check_pallas_gpu(on_gpu: bool, platform: str, config: ModelConfig, page_size: int) -> None:
    if not on_gpu:
        raise ConfigError(
            f"rollout.attention='pallas_gpu': a GPU kernel, the devices are {platform}; use auto"
        )
    for name, value in (("page_size", page_size), ("head_dim", config.head_dim)):
        if not _is_power_of_2(value):
            raise ConfigError(
                f"{name}={value}: rollout.attention='pallas_gpu' needs a power of 2; use xla"
            )
    if config.head_dim < GPU_MIN_DOT:
        raise ConfigError(
            f"head_dim={config.head_dim}: rollout.attention='pallas_gpu' needs at least "
            f"{GPU_MIN_DOT}; use xla"
        )


def _is_power_of_2(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0
