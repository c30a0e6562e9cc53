"""Which layout of the pool serves an attention back end, and what each back end can serve."""

from __future__ import annotations

from typing import Literal

from polaris_jax.config import ConfigError
from polaris_jax.models.config import ModelConfig
from polaris_jax.rollout.kv_layouts import PALLAS_GPU, RAGGED, TOKEN_MAJOR, XLA, KVLayout
from polaris_jax.rollout.paged_kv import pages_for

Attention = Literal["auto", "xla", "ragged", "pallas_gpu", "native"]

# Scalar memory of a TPU core, into which `ragged_paged_attention` fetches the whole page table.
SMEM_BYTES = 1 << 20
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
            f"rollout.attention={attention!r}: expected auto, xla, ragged (TPU), pallas_gpu (GPU) "
            "or native (CPU)"
        )
    return TOKEN_MAJOR if platform == "tpu" else XLA


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
