"""Selects and checks the attention back end of a run before anything compiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import jax.numpy as jnp
from jax.typing import DTypeLike

from polaris_jax.models.attention.gpu import HEAD_DIM_MAX as TRITON_HEAD_DIM_MAX
from polaris_jax.models.attention.splash import BLOCK_TOKENS_MIN as SPLASH_BLOCK_TOKENS_MIN

Attention = Literal["auto", "reference", "chunked", "splash", "triton", "cudnn"]

# `auto` turns to `chunked` from here. CPU seconds of forward and backward, packed rows: half of
# `reference` at 128 tokens, a third at 256, a sixth at 512; but it takes longer to compile.
AUTO_CHUNKED_FROM_TOKENS = 256
# The fused GPU kernels, fastest first; `chunked` is what is left.
GPU_PREFERENCE: Sequence[Attention] = ("cudnn", "triton", "chunked")
PLATFORM = {"splash": "tpu", "triton": "gpu", "cudnn": "gpu"}
SPLASH_HEAD_DIM = 64  # half a TPU's lanes: 64 and 128 compile
CUDNN_HEAD_DIM_MAX = 128  # of every GPU; Hopper takes 256


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

    Raises:
        ValueError: the back end does not run on this platform or with these shapes; the message has
            the field, the rule and the remedy.
    """
    if backend not in get_args(Attention):
        raise ValueError(
            f"model.attention={backend!r}: expected one of {', '.join(get_args(Attention))}"
        )
    platform = "gpu" if platform in ("cuda", "rocm") else platform

    def objections(choice: Attention) -> Iterator[str]:
        if num_heads % num_kv_heads:
            yield f"{num_heads} query heads must be a multiple of {num_kv_heads} kv heads"
        if context_shards > 1 and length % (2 * context_shards):
            yield (
                f"batch.row_len={length} must be a multiple of 2 x mesh.context "
                f"= {2 * context_shards} (zigzag); set it so, or mesh.context=1"
            )
        needed = PLATFORM.get(choice, platform)
        if needed != platform:
            yield (
                f"it runs on a {needed}, and this is a {platform}; set auto, or chunked, which "
                "runs everywhere"
            )
        if choice == "splash":
            yield from _splash_objections(length, head_dim, context_shards)
        if choice in ("triton", "cudnn") and context_shards > 1:
            yield (
                f"mesh.context={context_shards}: it has no masks for parts of a row; set "
                "chunked, or mesh.context=1"
            )
        if choice == "triton":
            yield from _triton_objections(head_dim, dtype)
        if choice == "cudnn":
            yield from _cudnn_objections(head_dim, dtype, one_segment_a_row)

    def check(choice: Attention) -> Attention:
        for objection in objections(choice):
            asked = choice if choice == backend else f"{backend}, resolved to {choice}"
            raise ValueError(f"model.attention={asked}: {objection}")
        return choice

    if backend != "auto":
        return check(backend)
    if platform == "gpu":
        for choice in GPU_PREFERENCE:
            if not any(objections(choice)):
                return choice
        return check("chunked")
    if platform == "tpu":
        return check("splash" if head_dim % SPLASH_HEAD_DIM == 0 else "chunked")
    return check(portable(length))


def portable(length: int) -> Attention:
    """What runs on every platform: `reference` for short rows, else `chunked`."""
    return "chunked" if length >= AUTO_CHUNKED_FROM_TOKENS else "reference"


def _splash_objections(length: int, head_dim: int, context_shards: int) -> Iterator[str]:
    if head_dim % SPLASH_HEAD_DIM:
        yield (
            f"head_dim={head_dim}: the kernel is known to take multiples of {SPLASH_HEAD_DIM}; set "
            "chunked for this model"
        )
    chunk = 2 * context_shards * SPLASH_BLOCK_TOKENS_MIN
    if context_shards > 1 and length % chunk:
        yield (
            f"batch.row_len={length}: each of 2 x mesh.context equal parts must be a multiple of "
            f"{SPLASH_BLOCK_TOKENS_MIN} tokens; set row_len to a multiple of {chunk}, such as "
            f"{-(-length // chunk) * chunk}, or lower mesh.context"
        )


def _triton_objections(head_dim: int, dtype: DTypeLike) -> Iterator[str]:
    if jnp.dtype(dtype).itemsize != 2:
        yield (
            f"model.dtype={jnp.dtype(dtype).name}: the kernel would multiply in TF32 and, at heads "
            "of 128, overrun a GPU's shared memory; set model.dtype=bfloat16, or chunked"
        )
    if head_dim > TRITON_HEAD_DIM_MAX:
        yield f"head_dim={head_dim}: the kernel takes at most {TRITON_HEAD_DIM_MAX}; set chunked"


def _cudnn_objections(head_dim: int, dtype: DTypeLike, one_segment_a_row: bool) -> Iterator[str]:
    if not one_segment_a_row:
        yield "it takes no segment ids, and rows are packed; set triton or chunked"
    if jnp.dtype(dtype).itemsize != 2:
        yield (
            f"model.dtype={jnp.dtype(dtype).name}: cuDNN's attention takes bfloat16 or float16; "
            "set model.dtype=bfloat16, or chunked"
        )
    if head_dim % 8 or head_dim > CUDNN_HEAD_DIM_MAX:
        yield (
            f"head_dim={head_dim}: cuDNN takes multiples of 8 up to {CUDNN_HEAD_DIM_MAX}; "
            "set chunked"
        )
