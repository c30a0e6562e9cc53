"""The attention back ends of the sampler, one row each, and the choice of one.

    native      CPU: C++ kernels for decode attention and for matrix products (`rollout.native`)
    ragged      TPU: jax's `ragged_paged_attention`
    ragged_v3   TPU, by name alone: the third version of that kernel, if its package is installed
    pallas_gpu  GPU: jax's Pallas `paged_attention`
    xla         every platform: the reference, without a kernel

`rollout.attention=auto` takes the first row of the platform that can serve. The sampler knows of a
back end what its row holds: no other module compares names. How to add one:
docs/howto/attention_backend.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from polaris_jax.config import ConfigError
from polaris_jax.models.config import ModelConfig
from polaris_jax.rollout import fused_weights, native
from polaris_jax.rollout.kv import int8, ragged_v3
from polaris_jax.rollout.kv.layouts import (
    PALLAS_GPU,
    PALLAS_GPU_INT8,
    RAGGED,
    RAGGED_INT8,
    TOKEN_MAJOR,
    TOKEN_MAJOR_INT8,
    XLA,
    XLA_INT8,
    KVLayout,
)
from polaris_jax.rollout.kv.ragged_v3 import RAGGED_V3
from polaris_jax.rollout.pages import pages_for

AUTO = "auto"
GPUS = ("gpu", "cuda", "rocm")
# Scalar memory of a TPU core; `ragged_paged_attention` fetches the complete page table into it.
SMEM_BYTES = 1 << 20
# Rows of the smallest matrix that a GPU's tensor cores take.
GPU_MIN_DOT = 16
RAGGED_HEAD_DIM = 128


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a back end is to serve.

    Attributes:
        platform: platform of the devices: "cpu", "tpu", "gpu" (or "cuda", "rocm").
        model: the architecture.
        page_size: Y.
        rows: rows of the largest decode call of a data shard.
        pages: J, pages of the longest sequence.
        dtype: dtype of the weights; None: not known yet.
        kv_dtype: "auto": pages have the weights' dtype; "int8": 8-bit numbers.
        tensor: devices that share one copy of the weights.
        mesh_size: devices of the sampler's mesh; 0: one device without a mesh.
        staged: True if decode may write to the pool once a call (see `kv.staged`).
    """

    platform: str
    model: ModelConfig
    page_size: int = 16
    rows: int = 1
    pages: int = 1
    dtype: str | None = None
    kv_dtype: str = "auto"
    tensor: int = 1
    mesh_size: int = 0
    staged: bool = False


# What is wrong with the sizes, in words that follow "rollout.attention='NAME': "; "" if nothing is.
Limit = Callable[[Sizes], str]


@dataclasses.dataclass(frozen=True)
class Backend:
    """One attention back end.

    Attributes:
        name: value of `rollout.attention`.
        layout: layout of its pages, with its attention functions.
        int8_layout: the same for 8-bit keys and values; None: it cannot read them.
        platforms: platforms on which it runs; (): all.
        limits: what it cannot serve. `auto` then takes another row; a run that names this one is
            refused.
        check: raises ConfigError for sizes that the user must change, under `auto` too.
        native: True if C++ kernels make decode attention and matrix products.
        reason: why `auto` takes it, given the platform.
    """

    name: str
    layout: KVLayout
    int8_layout: KVLayout | None
    platforms: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    check: Callable[[Sizes], None] = lambda sizes: None
    native: bool = False
    reason: Callable[[str], str] = "the kernel of a {}".format

    def runs_on(self, platform: str) -> bool:
        """True if the platform is one of the back end's."""
        return not self.platforms or platform in self.platforms

    def pages(self, kv_dtype: str) -> KVLayout:
        """The layout for `rollout.kv_dtype`, for sizes that the back end can serve."""
        found = self.layout if kv_dtype == "auto" else self.int8_layout
        assert found is not None
        return found

    def refusal(self, sizes: Sizes) -> str:
        """Why the back end cannot serve; "" if it can."""
        limits = (self._platform, self._keys_and_values, *self.limits)
        # In order, and none after the first that refuses: the last may compile.
        first = next(filter(None, (limit(sizes) for limit in limits)), "")
        return first and f"rollout.attention={self.name!r}: {first}"

    def _platform(self, sizes: Sizes) -> str:
        if self.runs_on(sizes.platform):
            return ""
        return f"runs on {' or '.join(self.platforms)}, the devices are {sizes.platform}"

    def _keys_and_values(self, sizes: Sizes) -> str:
        if sizes.kv_dtype == "auto" or self.int8_layout is not None:
            return ""
        return f"does not read keys and values of rollout.kv_dtype={sizes.kv_dtype!r}"


def choose_backend(asked: str, sizes: Sizes) -> tuple[Backend, str]:
    """The back end that serves, and why this one.

    Args:
        asked: `rollout.attention`: a name of the table, or "auto".
        sizes: what to serve.

    Raises:
        ConfigError: the back end asked for cannot serve, or sizes must be changed.
    """
    named = [row for row in BACKENDS if asked in (row.name, AUTO)]
    here = [row for row in named if row.runs_on(sizes.platform)]
    if not named:
        names = ", ".join(dict.fromkeys(row.name for row in BACKENDS))
        raise ConfigError(f"rollout.attention={asked!r}: expected {AUTO} or one of {names}")
    refusals = []
    for row in here or named[:1]:
        refusal = row.refusal(sizes)
        if not refusal:
            row.check(sizes)
            own = row.native or asked == AUTO
            why = row.reason(sizes.platform) if own else f"rollout.attention={asked!r}"
            return row, refusals[0] if refusals else why
        refusals.append(refusal)
    raise ConfigError(f"{refusals[0]}; use {AUTO} or {BACKENDS[-1].name}")


# --- limits ---


def _head_dim_of_ragged(sizes: Sizes) -> str:
    width = sizes.model.head_dim
    if width == RAGGED_HEAD_DIM:
        return ""
    return f"needs head_dim={RAGGED_HEAD_DIM}, the model has {width}"


_TILES = (1, 2, 4, 8)  # words


def _heads_of_ragged(sizes: Sizes) -> str:
    """By jax's kernel (`get_min_heads_per_blk`), which has keys and values side by side."""
    eight_bits = sizes.kv_dtype != "auto"
    in_a_word = 4 if eight_bits else 1 if sizes.dtype == "float32" else 2
    heads = sizes.model.num_kv_heads // sizes.tensor
    words, left = divmod(2 * heads, in_a_word)
    if left or (words not in _TILES and words % 8):
        legal = [h for h in range(1, 9) if not 2 * h % in_a_word and 2 * h // in_a_word in _TILES]
        kind = f"rollout.kv_dtype={sizes.kv_dtype!r}" if eight_bits else sizes.dtype or "16 bits"
        return (
            f"with {kind} needs {', '.join(map(str, legal))} or a multiple of {4 * in_a_word} KV "
            f"heads on a device, and has {heads} with rollout.tensor={sizes.tensor}"
        )
    return int8.refusal(sizes.model) if eight_bits else ""


def _powers_of_2(sizes: Sizes) -> str:
    for name, value in (("page_size", sizes.page_size), ("head_dim", sizes.model.head_dim)):
        if value & (value - 1):
            return f"needs a power of 2, {name}={value} is none"
    return ""


def _width_of_a_dot(sizes: Sizes) -> str:
    width = sizes.model.head_dim
    return "" if width >= GPU_MIN_DOT else f"needs head_dim of at least {GPU_MIN_DOT}, not {width}"


def _one_device(sizes: Sizes) -> str:
    if not sizes.mesh_size:
        return ""
    return f"is for one device without a mesh, the sampler has a mesh of {sizes.mesh_size}"


def _staged(sizes: Sizes) -> str:
    return "" if sizes.staged else "needs layout='staged'"


def _fused(sizes: Sizes) -> str:
    return fused_weights.refusal(sizes.model)


def _compiled(sizes: Sizes) -> str:
    del sizes
    try:
        native.load()
    except native.BuildFailed as error:
        return f"cannot be compiled: {error}"
    return ""


def _bfloat16(sizes: Sizes) -> str:
    if sizes.dtype == "bfloat16":
        return ""
    return f"is for bfloat16, the sampler's dtype is {sizes.dtype or 'unknown yet'}"


def _tpu_inference(sizes: Sizes) -> str:
    del sizes
    if ragged_v3.installed():
        return ""
    return "needs the package tpu-inference (pip install --no-deps tpu-inference)"


def _kernel_dtype(sizes: Sizes) -> str:
    if sizes.dtype == "float32" or (sizes.dtype == "bfloat16" and native.multiplies_bfloat16()):
        return ""
    if sizes.dtype == "bfloat16":
        return "multiplies bfloat16 by AVX512-BF16, which this CPU or its compiler lacks"
    return f"is for float32 and bfloat16, the sampler's dtype is {sizes.dtype or 'unknown yet'}"


def smem_bytes(rows: int, pages: int) -> int:
    """Scalar memory of a decode call of `ragged`: page table, lengths, query offsets."""
    return 4 * (rows * pages + 2 * rows + 1)


def _check_smem(sizes: Sizes) -> None:
    page_size, rows, pages = sizes.page_size, sizes.rows, sizes.pages
    needed = smem_bytes(rows, pages)
    if needed < SMEM_BYTES:
        return
    tokens, fitting = pages * page_size, 2 * page_size
    while fitting < tokens and smem_bytes(rows, pages_for(tokens, fitting)) >= SMEM_BYTES:
        fitting *= 2
    raise ConfigError(
        f"rollout.page_size={page_size}: the page table of {rows} slots x {pages} pages x 4 "
        f"bytes = {needed} bytes (with lengths) does not fit the {SMEM_BYTES} bytes of scalar "
        f"memory of the TPU's ragged attention; use rollout.page_size={fitting}, fewer slots "
        "a data shard, or xla"
    )


# --- the table: the first row of a platform that can serve is its `auto` ---

BACKENDS = (
    Backend(
        "native",
        XLA,
        None,
        platforms=("cpu",),
        limits=(_one_device, _staged, _fused, _compiled, _kernel_dtype),
        native=True,
        reason=lambda platform: native.load(),
    ),
    Backend(
        "ragged",
        RAGGED,
        RAGGED_INT8,
        platforms=("tpu",),
        limits=(_head_dim_of_ragged, _heads_of_ragged),
        check=_check_smem,
    ),
    # Its limits hold for `ragged` too, so `auto` never comes to it: nobody has run it on a chip.
    Backend(
        "ragged_v3",
        RAGGED_V3,
        None,
        platforms=("tpu",),
        limits=(_head_dim_of_ragged, _bfloat16, _tpu_inference),
        check=_check_smem,
    ),
    Backend(
        "pallas_gpu",
        PALLAS_GPU,
        PALLAS_GPU_INT8,
        platforms=GPUS,
        limits=(_powers_of_2, _width_of_a_dot),
    ),
    # On a TPU the pages of `ragged`: with the others the compiler makes copies of the pool.
    Backend(
        "xla",
        TOKEN_MAJOR,
        TOKEN_MAJOR_INT8,
        platforms=("tpu",),
        reason="the reference, on a {}".format,
    ),
    Backend("xla", XLA, XLA_INT8, reason="the reference, on a {}".format),
)
