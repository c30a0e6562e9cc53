"""What the sampler's programs are compiled for: sizes checked against model, mesh and platform."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from polaris_jax import sharding
from polaris_jax.config import ConfigError, check_slots
from polaris_jax.models import ModelConfig
from polaris_jax.rollout import fused_weights
from polaris_jax.rollout.kv.backends import Sizes, choose_backend
from polaris_jax.rollout.kv.layouts import KVLayout
from polaris_jax.rollout.kv.staged import TILE_ROWS
from polaris_jax.rollout.settings import SamplerConfig

# Matmul rows of CPU XLA agree bit for bit between 2 and 32 rows, not with 1 or above.
MIN_ROWS = 2
# With native kernels XLA's part of a call gives a row other bits if the call has fewer rows than a
# vector has lanes: on AVX2 cores log-probs of SmolLM2 by up to 4e-5 between 4 rows and 8 to 64.
EXACT_ROWS = 8
MIN_BUCKET_ROWS = 32
ROW_MULTIPLE = 8
# A decode step of fewer FLOPs costs the CPU its dispatch and little else: not worth a program.
MIN_BUCKET_FLOPS = 100e6
NATIVE_MIN_BUCKET_FLOPS = 60e6  # programs with native kernels compile in half the time
# Prompt tokens of one prefill call: enough to fill matmuls, few enough that padding stays small.
PREFILL_CALL_TOKENS = 512
FEW_PREFILL_TOKENS = 128
CPU_PREFILL_CHUNK = 16


@dataclasses.dataclass(frozen=True)
class ProgramSpec:
    """What the programs are compiled for, beside array shapes.

    Attributes:
        num_layers: L.
        steps: K, decode steps of a call at most.
        staged: decode leaves the pool alone until a call's end; see `kv.staged`.
        unroll: layers by a Python loop; a scan over stacked weights copies each layer's on a CPU.
        fused: the sampler's weights are `FusedWeights`.
        native: the kernels in `native` make decode's attention and the products; implies `staged`
            and `fused`.
        row_buckets: row counts of a data shard for which decode is compiled, ascending.
        layout: layout of the pool.
        mesh: the sampler's mesh; None: jax's default device.
        kernels: the kernels and why they serve, for a log.
    """

    num_layers: int
    steps: int
    staged: bool
    unroll: bool
    fused: bool
    native: bool
    row_buckets: tuple[int, ...]
    layout: KVLayout
    mesh: Mesh | None
    kernels: str = dataclasses.field(compare=False)


def program_spec(
    model_config: ModelConfig, config: SamplerConfig, mesh: Mesh | None
) -> ProgramSpec:
    """What the programs of these sizes are compiled for, checked against model, mesh and platform.

    Raises:
        ConfigError: heads, MLP width or slots that the mesh does not divide; a back end that does
            not serve the platform or the sizes.
    """
    data, tensor = sharding.slot_shards(mesh), sharding.head_shards(mesh)
    for name in ("num_heads", "num_kv_heads", "intermediate_size"):
        size = getattr(model_config, name)
        if size % tensor:
            raise ConfigError(
                f"rollout.tensor={tensor}: must divide the model's {name}={size}; choose a divisor "
                "of both"
            )
    check_slots(config.slots, data)
    if config.num_pages and config.num_pages // data < 2:
        raise ConfigError(
            f"rollout.num_pages={config.num_pages}: each of {data} data shards needs at least 2"
        )
    device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
    on_cpu = device.platform == "cpu"
    may_stage = config.layout == "staged" or (config.layout == "auto" and on_cpu)
    backend, why = choose_backend(
        config.attention,
        Sizes(
            platform=device.platform,
            model=model_config,
            page_size=config.page_size,
            rows=max(config.slots // data, MIN_ROWS),
            pages=config.pages_of_a_row,
            dtype=config.dtype,
            kv_dtype=config.kv_dtype,
            tensor=tensor,
            mesh_size=0 if mesh is None else mesh.size,
            staged=may_stage,
        ),
    )
    layout = backend.pages(config.kv_dtype)
    if config.layout == "staged" and not layout.stages:
        raise ConfigError(
            f"layout='staged': not on a {device.platform} with attention={backend.name!r}; use "
            "pages"
        )
    staged = may_stage and layout.stages
    if staged:
        least_flops = NATIVE_MIN_BUCKET_FLOPS if backend.native else MIN_BUCKET_FLOPS
        min_rows = config.min_rows or math.ceil(least_flops / (2 * model_config.num_parameters))
        exact = exact_rows(config, native=backend.native)
        buckets = fine_row_buckets(
            config.slots // data, max(min_rows, exact), single=backend.native, least=exact
        )
    else:
        buckets = row_buckets(config.slots // data)
    # A scan over stacked weights copies each layer's slice on a CPU.
    return ProgramSpec(
        num_layers=model_config.num_layers,
        steps=config.decode_steps,
        staged=staged,
        unroll=on_cpu,
        fused=on_cpu and mesh is None and not fused_weights.refusal(model_config),
        native=backend.native,
        row_buckets=buckets,
        layout=layout,
        mesh=mesh,
        kernels=f"{backend.name} ({why})",
    )


class PrefillShape(NamedTuple):
    """Prefill calls of a data shard: tokens of a row, and the row counts that are compiled."""

    chunk: int
    row_buckets: tuple[int, ...]


def prefill_shape(prefill_chunk: int, *, fine: bool) -> PrefillShape:
    """The shape of prefill calls, in which a prompt continues from row to row.

    A row has at most `prefill_chunk` tokens; only a prompt's last row is padded.

    Args:
        prefill_chunk: maximum number of tokens of a row.
        fine: True on a CPU, where time is proportional to the tokens computed: rows are short, and
            a second program has few rows. False elsewhere, because each row costs a pass over its
            pages, and each program takes long to compile.
    """
    if not fine:
        return PrefillShape(prefill_chunk, (max(1, PREFILL_CALL_TOKENS // prefill_chunk),))
    chunk = min(prefill_chunk, CPU_PREFILL_CHUNK)
    return PrefillShape(chunk, (FEW_PREFILL_TOKENS // chunk, PREFILL_CALL_TOKENS // chunk))


def row_buckets(slots: int) -> tuple[int, ...]:
    """Row counts for which decode is compiled, ascending: slots and quarters down to 32.

    For accelerators, where fewer rows read the same weights in the same time.

    Args:
        slots: number of slots of a data shard.
    """
    buckets = [max(slots, MIN_ROWS)]
    while buckets[0] >= 4 * MIN_BUCKET_ROWS:
        buckets.insert(0, -(-buckets[0] // 4))
    return tuple(buckets)


def exact_rows(config: SamplerConfig, *, native: bool) -> int:
    """The rows from which on every call gives a row the same bits; 1 if that is not asked for.

    Rows behind the last live one cost next to nothing with native kernels. `min_rows` overrules.
    """
    return EXACT_ROWS if native and not config.min_rows else 1


def fine_row_buckets(
    slots: int, min_rows: int, *, single: bool = False, least: int = 1
) -> tuple[int, ...]:
    """`row_buckets` for a CPU: powers of 2 and, from 12 up, one and a half times these powers.

    On a CPU a step's time is proportional to its rows, and a program compiles in seconds.

    Args:
        slots: number of slots of a data shard.
        min_rows: smallest number of rows with its own program.
        single: also 1, 3 and 6 rows. With native kernels the cost of a product falls with the
            rows even there.
        least: rows of the largest count at least.
    """
    # Beyond a tile the rows must divide into some.
    most = slots if slots <= TILE_ROWS else -(-slots // ROW_MULTIPLE) * ROW_MULTIPLE
    most = max(most, least, 1 if single else MIN_ROWS)
    powers = [MIN_ROWS << i for i in range(most.bit_length())]
    sizes = sorted({*powers, *(3 * p // 2 for p in powers if single or p > 4)})
    if single:
        sizes = [1, *sizes]
    return (*(size for size in sizes if min_rows <= size < most), most)
