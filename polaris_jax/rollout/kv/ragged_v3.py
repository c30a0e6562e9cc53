"""The third version of the TPU's ragged paged attention, from the package `tpu-inference`.

The kernel is vLLM's TPU project's. It fetches the row's own tokens alone, has a program of its own
for decode, and writes the new keys and values itself. It is not part of this package: `load` takes
it from an installed `tpu-inference`.

Pages: [L*Z, Y, K, 2, H], keys and values of a head in turn. Two bfloat16 numbers share a lane, so
the layout serves bfloat16 alone.

Source: arXiv:2604.15464. Differs: prefill writes its keys and values before the kernel, because a
row may read pages that another row of the same call writes.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from polaris_jax.rollout import kv
from polaris_jax.rollout.kv.layouts import KVLayout
from polaris_jax.rollout.pages import pages_for

PACKAGE = "tpu_inference"
KERNEL = f"{PACKAGE}.kernels.ragged_paged_attention.v3.kernel"
# Keys that are fetched and multiplied at once. The kernel's own table of sizes asks for the
# device, which an ahead-of-time compile does not have.
DECODE_FETCH_TOKENS, DECODE_TOKENS = 2048, 1024
PREFILL_TOKENS, PREFILL_QUERIES = 512, 32
VMEM_BYTES = 64 << 20


class PairPool(NamedTuple):
    """Pages of all layers; the axis of 2 is key and value."""

    kv_ZYK2H: Any


@functools.cache
def installed() -> bool:
    """True if the package is installed; nothing is imported."""
    return importlib.util.find_spec(PACKAGE) is not None


@functools.cache
def load() -> Callable[..., Any]:
    """The package's kernel, imported without the package's own `__init__`.

    That imports vLLM, and with it torch; the kernel imports jax alone. So a stand-in for the
    package is in `sys.modules` while the kernel is imported.

    Raises:
        ModuleNotFoundError: tpu-inference is not installed, or its kernel has moved.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise ModuleNotFoundError(
            f"rollout.attention='ragged_v3': no package {PACKAGE}; pip install --no-deps "
            "tpu-inference, or use rollout.attention=ragged",
            name=PACKAGE,
        )
    if PACKAGE in sys.modules:
        return importlib.import_module(KERNEL).ragged_paged_attention
    stand_in = types.ModuleType(PACKAGE)
    stand_in.__path__ = list(spec.submodule_search_locations or ())
    before = set(sys.modules)
    sys.modules[PACKAGE] = stand_in
    try:
        return importlib.import_module(KERNEL).ragged_paged_attention
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == PACKAGE:
                del sys.modules[name]


def attend_prefill(
    layer: Array,
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    pool: PairPool,
    *,
    position_BT: Array,
    live_BT: Array,
    table_BJ: Array,
    num_layers: int,
    kernel: Callable[..., Any] | None = None,
) -> tuple[Array, PairPool]:
    """`kv.attend_pages` through the kernel, which only reads.

    Padding queries are computed too, at positions after the row's; only their outputs are wrong.

    Args:
        kernel: a stand-in with the arguments of the package's kernel, for tests.
    """
    batch, length, num_heads, width = q_BTNH.shape
    rows, page_size = pool.kv_ZYK2H.shape[:2]
    base = layer * (rows // num_layers)
    page_BT, offset_BT = kv.page_of_tokens(table_BJ, position_BT, live_BT, page_size)
    kv_BTK2H = jnp.stack([k_BTKH, v_BTKH], axis=3)
    pages_Z = pool.kv_ZYK2H.at[base + page_BT, offset_BT].set(kv_BTK2H)
    # Padding may reach beyond the last page of a row.
    table_BJ = jnp.pad(table_BJ, ((0, 0), (0, pages_for(length - 1, page_size))))
    keys = _whole_pages(PREFILL_TOKENS, table_BJ, page_size)
    queries = min(length, PREFILL_QUERIES)
    sizes = (queries, keys, queries, keys)
    out, pages_Z = (kernel or load())(
        q_BTNH.reshape(batch * length, num_heads, width),
        *(x.reshape(batch * length, -1, width) for x in (k_BTKH, v_BTKH)),
        pages_Z,
        position_BT[:, 0] + length,
        (base + table_BJ).reshape(-1),
        length * jnp.arange(batch + 1, dtype=jnp.int32),
        jnp.array([0, 0, batch], jnp.int32),
        update_kv_cache=False,
        sm_scale=width**-0.5,
        d_block_sizes=sizes,
        m_block_sizes=sizes,
        vmem_limit_bytes=VMEM_BYTES,
    )
    return out.reshape(q_BTNH.shape), PairPool(pages_Z)


def attend_decode(
    layer: Array,
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    pool: PairPool,
    *,
    position_BT: Array,
    live_BT: Array,
    table_BJ: Array,
    num_layers: int,
    kernel: Callable[..., Any] | None = None,
) -> tuple[Array, PairPool]:
    """`kv.attend_pages` for one query a row; the kernel writes the new keys and values.

    Args:
        kernel: see `attend_prefill`.
    """
    batch, _, _, width = q_BTNH.shape
    rows, page_size = pool.kv_ZYK2H.shape[:2]
    base = layer * (rows // num_layers)
    # A dead row still has its slot's pages, and the kernel would write to them: it gets the trash
    # page and a length of one token.
    kv_len_B = jnp.where(live_BT, position_BT + 1, 1)[:, 0]
    page_BJ = base + jnp.where(live_BT, table_BJ, 0)
    keys = _whole_pages(DECODE_TOKENS, table_BJ, page_size)
    fetched = _whole_pages(DECODE_FETCH_TOKENS, table_BJ, page_size) // keys * keys
    sizes = (1, fetched, 1, keys)
    out_BNH, pages_Z = (kernel or load())(
        *(x[:, 0] for x in (q_BTNH, k_BTKH, v_BTKH)),
        pool.kv_ZYK2H,
        kv_len_B,
        page_BJ.reshape(-1),
        jnp.arange(batch + 1, dtype=jnp.int32),
        jnp.full(3, batch, jnp.int32),
        update_kv_cache=True,
        sm_scale=width**-0.5,
        d_block_sizes=sizes,
        m_block_sizes=sizes,
        vmem_limit_bytes=VMEM_BYTES,
    )
    return out_BNH[:, None], PairPool(pages_Z)


def _whole_pages(tokens: int, table_BJ: Array, page_size: int) -> int:
    """`tokens` in whole pages: at least one page, at most those of a row."""
    return page_size * min(table_BJ.shape[1], max(1, tokens // page_size))


RAGGED_V3 = KVLayout(
    page_axis=0,
    head_axis=2,
    shapes=lambda k, h, z, y: PairPool((z, y, k, 2, h)),
    attend=attend_prefill,
    attend_one=attend_decode,
    block_tokens=1,  # it fetches no token beyond the row's last
)
