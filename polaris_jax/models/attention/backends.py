"""The attention back ends of the trainer: one table, the choice among them, and the call.

A back end is a function that computes `attend` and a row of `BACK_ENDS`, which says where it runs,
what it takes, and why it is not chosen. `resolve_attention` reads the table before anything
compiles, `attend` when a model is traced. docs/howto/attention_backend.md adds one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Literal, get_args

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from polaris_jax.models.attention.gpu import TRITON_HEAD_DIM_MAX, attend_cudnn, attend_triton
from polaris_jax.models.attention.portable import attend_chunked, attend_reference
from polaris_jax.models.attention.shards import ContextShard
from polaris_jax.models.attention.splash import BLOCK_TOKENS_MIN, attend_splash

Attention = Literal["auto", "reference", "chunked", "splash", "triton", "cudnn"]

# `auto` turns to `chunked` from here on a CPU. CPU seconds of forward and backward, packed rows:
# half of `reference` at 128 tokens, a third at 256, a sixth at 512; but it takes longer to compile.
AUTO_CHUNKED_FROM_TOKENS = 256
SPLASH_HEAD_DIM = 64  # half a TPU's lanes: 64 and 128 compile
CUDNN_HEAD_DIM_MAX = 128  # of every GPU; Hopper takes 256


@dataclasses.dataclass(frozen=True)
class Need:
    """What a run asks of its attention; see `resolve_attention`."""

    length: int
    head_dim: int
    context_shards: int
    dtype: DTypeLike


def _no_limit(need: Need) -> Iterator[str]:
    del need
    yield from ()


@dataclasses.dataclass(frozen=True)
class BackEnd:
    """One way to compute `attend`.

    Attributes:
        attend: (q_BTNH, k_BSKH, v_BSKH, segment_BS, context) -> out_BTNH; if `shares_prompts`, a
            sixth argument is branch_BS.
        platform: "tpu" or "gpu"; None: every platform.
        packs_rows: True if several segments may lie in a row.
        takes_shards: True if the queries may be a context shard of the row.
        shares_prompts: True if a segment may have branches, see `attend`.
        limits: why the kernel does not take a model or a dtype, each with a remedy. `auto` then
            takes another back end.
        row_rule: why the kernel does not take the run's rows. `auto` reports it instead of choosing
            a slower back end, because another batch.row_len or mesh mends it.
    """

    attend: Callable[..., Array]
    platform: str | None = None
    packs_rows: bool = True
    takes_shards: bool = True
    shares_prompts: bool = False
    limits: Callable[[Need], Iterator[str]] = _no_limit
    row_rule: Callable[[Need], Iterator[str]] = _no_limit


def _splash_limits(need: Need) -> Iterator[str]:
    if need.head_dim % SPLASH_HEAD_DIM:
        yield (
            f"head_dim={need.head_dim}: the kernel is known to take multiples of "
            f"{SPLASH_HEAD_DIM}; set chunked for this model"
        )


def _splash_rows(need: Need) -> Iterator[str]:
    chunk = 2 * need.context_shards * BLOCK_TOKENS_MIN
    if need.context_shards > 1 and need.length % chunk:
        yield (
            f"batch.row_len={need.length}: each of 2 x mesh.context equal parts must be a multiple "
            f"of {BLOCK_TOKENS_MIN} tokens; set row_len to a multiple of {chunk}, such as "
            f"{-(-need.length // chunk) * chunk}, or lower mesh.context"
        )


def _triton_limits(need: Need) -> Iterator[str]:
    if jnp.dtype(need.dtype).itemsize != 2:
        yield (
            f"model.dtype={jnp.dtype(need.dtype).name}: the kernel would multiply in TF32 and, at "
            "heads of 128, overrun a GPU's shared memory; set model.dtype=bfloat16, or chunked"
        )
    if need.head_dim > TRITON_HEAD_DIM_MAX:
        yield (
            f"head_dim={need.head_dim}: the kernel takes at most {TRITON_HEAD_DIM_MAX}; set chunked"
        )


def _cudnn_limits(need: Need) -> Iterator[str]:
    if jnp.dtype(need.dtype).itemsize != 2:
        yield (
            f"model.dtype={jnp.dtype(need.dtype).name}: cuDNN's attention takes bfloat16 or "
            "float16; set model.dtype=bfloat16, or chunked"
        )
    if need.head_dim % 8 or need.head_dim > CUDNN_HEAD_DIM_MAX:
        yield (
            f"head_dim={need.head_dim}: cuDNN takes multiples of 8 up to {CUDNN_HEAD_DIM_MAX}; "
            "set chunked"
        )


# Of a platform's own back ends `auto` takes the first that can serve.
BACK_ENDS: Mapping[Attention, BackEnd] = MappingProxyType(
    {
        "splash": BackEnd(attend_splash, "tpu", limits=_splash_limits, row_rule=_splash_rows),
        "cudnn": BackEnd(
            attend_cudnn, "gpu", packs_rows=False, takes_shards=False, limits=_cudnn_limits
        ),
        "triton": BackEnd(attend_triton, "gpu", takes_shards=False, limits=_triton_limits),
        "chunked": BackEnd(attend_chunked, shares_prompts=True),
        "reference": BackEnd(attend_reference, shares_prompts=True),
    }
)


def packs_rows(backend: Attention) -> bool:
    """Whether a run with this `model.attention` packs several sequences into a row."""
    return backend == "auto" or BACK_ENDS[backend].packs_rows


def shares_prompts(backend: Attention) -> bool:
    """Whether this back end, as `resolve_attention` returns it, lets responses share a prompt."""
    return BACK_ENDS[backend].shares_prompts


def resolve_attention(
    backend: Attention,
    *,
    platform: str,
    length: int,
    head_dim: int,
    num_heads: int,
    num_kv_heads: int,
    context_shards: int,
    dtype: DTypeLike,
    one_segment_a_row: bool,
    say: Callable[[str], None] = lambda line: None,
) -> Attention:
    """The back end to run: `backend` itself once checked, or the best legal one for `auto`.

    Args:
        backend: model.attention.
        platform: what the program is compiled for: `cpu`, `gpu` (also `cuda`, `rocm`) or `tpu`.
        length: tokens of a row, batch.row_len.
        head_dim: width of a head.
        num_heads: query heads on a device.
        num_kv_heads: kv heads on a device.
        context_shards: mesh.context; rows are then laid out in zigzag.
        dtype: dtype of queries, keys and values.
        one_segment_a_row: True if rows are never packed.
        say: gets a line if `auto` passes over this platform's own back ends, with the reasons.

    Raises:
        ValueError: the back end does not run on this platform or with these shapes; the message has
            the field, the rule and the remedy.
    """
    platform = "gpu" if platform in ("cuda", "rocm") else platform
    need = Need(length, head_dim, context_shards, dtype)
    if backend not in get_args(Attention):
        raise ValueError(
            f"model.attention={backend!r}: expected one of {', '.join(get_args(Attention))}"
        )

    def refusals(row: BackEnd) -> Iterator[str]:
        if row.platform not in (None, platform):
            yield (
                f"it runs on a {row.platform}, and this is a {platform}; set auto, or chunked, "
                "which runs everywhere"
            )
        if context_shards > 1 and not row.takes_shards:
            yield (
                f"mesh.context={context_shards}: it has no masks for parts of a row; set "
                "chunked, or mesh.context=1"
            )
        if not row.packs_rows and not one_segment_a_row:
            yield "it takes no segment ids, and rows are packed; set triton or chunked"
        yield from row.limits(need)

    def objections(row: BackEnd) -> Iterator[str]:
        if num_heads % num_kv_heads:
            yield f"{num_heads} query heads must be a multiple of {num_kv_heads} kv heads"
        if context_shards > 1 and length % (2 * context_shards):
            yield (
                f"batch.row_len={length} must be a multiple of 2 x mesh.context "
                f"= {2 * context_shards} (zigzag); set it so, or mesh.context=1"
            )
        yield from refusals(row)
        yield from row.row_rule(need)

    chosen: Attention = backend
    if backend == "auto":
        own: list[Attention] = [name for name, row in BACK_ENDS.items() if row.platform == platform]
        passed = {name: next(refusals(BACK_ENDS[name]), "") for name in own}
        taken: list[Attention] = [name for name in own if not passed[name]]
        chosen = taken[0] if taken else "chunked" if own else portable(length)
        if own and not taken:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in passed.items())
            say(f"model.attention=auto: chunked, slower than this {platform}'s own ({reasons})")
    for objection in objections(BACK_ENDS[chosen]):
        asked = chosen if chosen == backend else f"{backend}, resolved to {chosen}"
        raise ValueError(f"model.attention={asked}: {objection}")
    return chosen


def portable(length: int) -> Attention:
    """What runs on every platform: `reference` for short rows, else `chunked`."""
    return "chunked" if length >= AUTO_CHUNKED_FROM_TOKENS else "reference"


def attend(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segment_BS: Array | None,
    *,
    backend: Attention = "auto",
    context: ContextShard | None = None,
    branch_BS: Array | None = None,
) -> Array:
    """Causal self-attention output, [B, T, N, H], in q's dtype; softmax in fp32.

    A query sees the keys of its own segment, up to its own row index. Padding (segment 0) sees
    padding; its outputs are finite and meaningless.

    Args:
        q_BTNH: queries, positions applied. Without `context` T = S and query t is at row index t.
            With it T = S / shards, and query t of shard i is at `row_order(...)[i * T + t]`.
        k_BSKH: keys of the complete row in row order; N is a multiple of K.
        v_BSKH: values of the complete row in row order.
        segment_BS: segment ids of the full row in row order, each id in one run, 0 for padding; or
            None for one segment a row.
        backend: see the package. `auto` takes what runs on every platform: `reference` for short
            rows, else `chunked`; `resolve_attention` knows the platform's fused kernels.
        context: which shard of the row the queries are. Only inside `jax.shard_map` over its axis,
            with `check_vma=False` where the back end is a Pallas kernel, which declares no axes.
        branch_BS: the branches of each segment of the full row in row order: 0 at its shared tokens
            and at padding, then 1, 2, ... in the segments' order, each in one run. A query in a
            branch sees the shared tokens of its segment and its own branch, up to its own row
            index, and no other branch. None: no segment has branches.

    Raises:
        ValueError: the shapes do not fit each other, or the back end does not support them.
    """
    queries, num_heads = q_BTNH.shape[1:3]
    length, num_kv_heads = k_BSKH.shape[1:3]
    shards = 1 if context is None else context.shards
    if num_heads % num_kv_heads:
        raise ValueError(
            f"num_heads={num_heads}: must be a multiple of num_kv_heads={num_kv_heads}"
        )
    if queries * shards != length:
        raise ValueError(
            f"q_BTNH holds {queries} positions of each of {shards} shards, k_BSKH {length}: "
            "attention takes the keys of the whole row"
        )
    if backend == "auto":
        backend = portable(length)
    if backend not in BACK_ENDS:
        raise ValueError(f"attention={backend!r}: expected auto or one of {', '.join(BACK_ENDS)}")
    row = BACK_ENDS[backend]
    if branch_BS is None:
        return row.attend(q_BTNH, k_BSKH, v_BSKH, segment_BS, context)
    if not row.shares_prompts:
        raise ValueError(
            f"model.attention={backend}: it takes no branches, so responses cannot share their "
            "prompt; set batch.share_prompts=off, or model.attention=chunked"
        )
    return row.attend(q_BTNH, k_BSKH, v_BSKH, segment_BS, context, branch_BS)
