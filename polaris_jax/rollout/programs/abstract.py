"""The sampler's programs with abstract arguments, to lower and compile without a device.

What `polaris plan` and ahead-of-time tests compile is what the sampler runs: the same jitted
functions, on any mesh of `sharding.make_sampler_mesh`, topology devices too. Nothing is allocated.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from polaris_jax import sharding
from polaris_jax.models import Decoder, ModelConfig
from polaris_jax.models.family import param_shapes
from polaris_jax.rollout import programs, weights
from polaris_jax.rollout.draft_costs import verify_rows
from polaris_jax.rollout.programs import Rows
from polaris_jax.rollout.programs.draw import RowParams
from polaris_jax.rollout.programs.spec import ProgramSpec, prefill_shape, program_spec
from polaris_jax.rollout.settings import MAX_STOP_TOKENS, SamplerConfig


@dataclasses.dataclass(frozen=True)
class AbstractProgram:
    """A jitted function and abstract arguments with shardings.

    Attributes:
        name: "decode", "prefill", "verify", "weight_sync/PATH".
        fn: the jitted function; donation is part of it.
        args: ShapeDtypeStructs.
    """

    name: str
    fn: Any
    args: tuple[Any, ...]

    def lower(self) -> jax.stages.Lowered:
        """The lowered program; `.compile()` it for its memory and cost."""
        return self.fn.lower(*self.args)


def decode_program(model_config: ModelConfig, config: SamplerConfig, mesh: Mesh) -> AbstractProgram:
    """A decode call of `config.decode_steps` steps over all slots.

    Args:
        model_config: the architecture.
        config: sizes; `num_pages` must be given.
        mesh: the sampler's.

    Raises:
        ValueError: sizes that the mesh or the back end does not allow.
    """
    spec = program_spec(model_config, config, mesh)
    data = sharding.slot_shards(mesh)
    rows = data * spec.row_buckets[-1]

    args = (
        abstract_weights(model_config, _dtype(config), mesh),
        _abstract_pool(model_config, config, spec),
        _abstract_rows(mesh, rows),
        _split(mesh, (rows, config.pages_of_a_row), np.int32),
        _stop_ids(mesh),
        _split(mesh, (data,), np.int32),
        _split(mesh, (data,), np.int32),
    )
    return AbstractProgram("decode", programs.compiled(spec).decode, args)


def verify_program(model_config: ModelConfig, config: SamplerConfig, mesh: Mesh) -> AbstractProgram:
    """The largest verify call of an accelerator with `config.draft_tokens` drafted tokens.

    Raises:
        ValueError: see `decode_program`.
    """
    spec = program_spec(model_config, config, mesh)
    drafting, data = dataclasses.replace(config, draft="history"), sharding.slot_shards(mesh)
    rows = data * verify_rows(drafting, data, min_rows=1, on_cpu=False)[-1]
    args = (
        abstract_weights(model_config, _dtype(config), mesh),
        _abstract_pool(model_config, config, spec),
        _abstract_rows(mesh, rows),
        _split(mesh, (rows, config.draft_tokens), np.int32),
        _split(mesh, (rows,), np.int32),
        _split(mesh, (rows, config.pages_of_a_row), np.int32),
        _stop_ids(mesh),
    )
    return AbstractProgram("verify", programs.compiled(spec).verify, args)


def prefill_program(
    model_config: ModelConfig, config: SamplerConfig, mesh: Mesh
) -> AbstractProgram:
    """The largest prefill call.

    Raises:
        ValueError: see `decode_program`.
    """
    spec = program_spec(model_config, config, mesh)
    chunk, row_buckets = prefill_shape(config.prefill_chunk, fine=spec.staged)
    rows = sharding.slot_shards(mesh) * row_buckets[-1]
    args = (
        abstract_weights(model_config, _dtype(config), mesh),
        _abstract_pool(model_config, config, spec),
        _split(mesh, (rows, chunk), np.int32),
        _split(mesh, (rows,), np.int32),
        _split(mesh, (rows,), np.int32),
        _split(mesh, (rows, config.pages_of_a_row), np.int32),
    )
    return AbstractProgram("prefill", programs.compiled(spec).prefill, args)


def weight_sync_programs(params: Decoder, dtype: DTypeLike, mesh: Mesh) -> list[AbstractProgram]:
    """The programs of one weight sync, which run one after the other.

    Args:
        params: the trainer's parameters, as ShapeDtypeStructs with NamedShardings over the mesh's
            devices in the mesh's order.
        dtype: dtype of the sampler's weights.
        mesh: the sampler's mesh. If several processes share the sampler: over all their devices.
    """
    shardings = weights.weight_shardings(params, mesh)
    return [
        AbstractProgram(
            f"weight_sync/{path}", weights.cast_to(jnp.dtype(dtype), shardings[path]), (leaf,)
        )
        for path, leaf in params.params().items()
    ]


def abstract_weights(model_config: ModelConfig, dtype: DTypeLike, mesh: Mesh) -> Decoder:
    """The sampler's weights as ShapeDtypeStructs with shardings."""
    leaves: dict[str, Any] = {
        path: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
        for path, shape in param_shapes(model_config).items()
    }
    shardings = weights.weight_shardings(Decoder.from_params(model_config, leaves), mesh)
    for path, leaf in leaves.items():
        leaves[path] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path])
    return Decoder.from_params(model_config, leaves)


def _dtype(config: SamplerConfig) -> str:
    if config.dtype is None:
        raise ValueError("dtype=None: without a model there is no dtype to take over; name one")
    return config.dtype


def _abstract_pool(model_config: ModelConfig, config: SamplerConfig, spec: ProgramSpec) -> Any:
    if not config.num_pages:
        raise ValueError("num_pages=0: without a device there is no memory to ask; give a number")
    data = sharding.slot_shards(spec.mesh)
    pool = spec.layout.abstract_pool(
        model_config,
        num_pages=config.num_pages // data * data,
        page_size=config.page_size,
        dtype=_dtype(config),
    )
    where = programs.pool_sharding(spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), pool)


def _split(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    where: NamedSharding = sharding.slot_sharding(mesh)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def _abstract_rows(mesh: Mesh, rows: int) -> Rows:
    def a_row(dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
        return _split(mesh, (rows,), dtype)

    return Rows(
        token_B=a_row(),
        position_B=a_row(),
        prompt_len_B=a_row(),
        limit_B=a_row(),
        alive_B=a_row(dtype=bool),
        params=RowParams(
            temperature_B=a_row(dtype=np.float32),
            top_p_B=a_row(dtype=np.float32),
            top_k_B=a_row(),
            min_p_B=a_row(dtype=np.float32),
            seed_B=a_row(dtype=np.uint32),
            sample_B=a_row(),
        ),
    )


def _stop_ids(mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((MAX_STOP_TOKENS,), np.int32, sharding=sharding.replicated(mesh))
