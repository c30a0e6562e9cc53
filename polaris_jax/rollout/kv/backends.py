"""Chooses the pool's layout for an attention back end; checks what each back end supports."""

from __future__ import annotations

from typing import Literal

from polaris_jax.config import ConfigError
from polaris_jax.models.config import ModelConfig
from polaris_jax.rollout.kv.layouts import PALLAS_GPU, RAGGED, TOKEN_MAJOR, XLA, KVLayout
from polaris_jax.rollout.pages import pages_for

Attention = Literal["auto", "xla", "ragged", "pallas_gpu", "native"]

# Scalar memory of a TPU core; `ragged_paged_attention` fetches the complete page table into it.
SMEM_BYTES = 1 << 20
GPUS = ("gpu", "cuda", "rocm")
# Rows of the smallest matrix that a GPU's tensor cores take.
GPU_MIN_DOT = 16
RAGGED_HEAD_DIM = 128


def smem_bytes(rows: int, pages: int) -> int:
    """Scalar memory of a `ragged` decode call: page table, lengths, query offsets."""
    return 4 * (rows * pages + 2 * rows + 1)


def choose_layout(
    attention: Attention,
    platform: str,
    config: ModelConfig,
    *,
    page_size: int,
    rows: int,
    pages: int,
) -> tuple[KVLayout, str]:
    """The layout of a back end, and why that one.

    `auto` is the platform's kernel if the model's shape allows it.

    Args:
        attention: the back end asked for.
        platform: platform of the devices: "cpu", "tpu", "gpu" (or "cuda").
        config: the architecture.
        page_size: Y.
        rows: number of rows of the largest decode call of a data shard.
        pages: J, pages of the longest sequence.

    Raises:
        ConfigError: the platform, the model or these sizes do not allow the back end.
    """
    why = f"rollout.attention={attention!r}"
    if attention == "auto":
        own: Attention = "pallas_gpu" if platform in GPUS else "ragged"
        refusal = _refusal(own, platform, config, page_size=page_size)
        attention = "xla" if refusal else own
        why = refusal or f"the kernel of a {platform}"
    elif attention in ("ragged", "pallas_gpu"):
        refusal = _refusal(attention, platform, config, page_size=page_size)
        if refusal:
            raise ConfigError(f"{refusal}; use auto or xla")
    if attention == "ragged":
        _check_smem(page_size=page_size, rows=rows, pages=pages)
        return RAGGED, why
    if attention == "pallas_gpu":
        return PALLAS_GPU, why
    if attention != "xla":
        raise ConfigError(
            f"rollout.attention={attention!r}: expected auto, xla, ragged (TPU), pallas_gpu (GPU) "
            "or native (CPU)"
        )
    return TOKEN_MAJOR if platform == "tpu" else XLA, why


def _refusal(kernel: Attention, platform: str, config: ModelConfig, *, page_size: int) -> str:
    """Why a kernel cannot serve; empty if it can."""
    name, width = f"rollout.attention={kernel!r}", config.head_dim
    if kernel == "ragged":
        if platform != "tpu":
            return f"{name}: a TPU kernel, the devices are {platform}"
        if width != RAGGED_HEAD_DIM:
            return f"{name}: needs head_dim={RAGGED_HEAD_DIM}, the model has {width}"
        return ""
    if platform not in GPUS:
        return f"{name}: a GPU kernel, the devices are {platform}"
    for what, value in (("page_size", page_size), ("head_dim", width)):
        if not _is_power_of_2(value):
            return f"{what}={value}: {name} needs a power of 2"
    if width < GPU_MIN_DOT:
        return f"head_dim={width}: {name} needs at least {GPU_MIN_DOT}"
    return ""


def _check_smem(*, page_size: int, rows: int, pages: int) -> None:
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


def _is_power_of_2(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0
