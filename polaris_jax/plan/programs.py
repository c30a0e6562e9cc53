"""The product's own programs and the arguments that they are called with.

The arguments are shapes and shardings; nothing is allocated and no device is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from polaris_jax.plan.compile import Program, device_bytes
from polaris_jax.plan.job import Job, Setting
from polaris_jax.rollout import SamplerConfig
from polaris_jax.rollout.programs.abstract import (
    AbstractProgram,
    decode_program,
    prefill_program,
    weight_sync_programs,
)
from polaris_jax.sharding import make_mesh, make_sampler_mesh
from polaris_jax.train.programs import abstract_arguments, update_programs


@dataclasses.dataclass(frozen=True)
class UpdateSet:
    """An update's programs, and the bytes a device of the state that they start from."""

    accumulate: Program
    apply: Program
    params_bytes: int
    moments_bytes: int
    reference_bytes: int  # the KL term's frozen model; 0 without one
    params: Any  # abstract, for the weight sync


@dataclasses.dataclass(frozen=True)
class SamplerSet:
    """A sampler's programs for one pool.

    Attributes:
        decode, prefill: the programs.
        weights_bytes: bytes of the sampler's weights on a device.
        page_bytes: bytes of one page on a device, all layers, without the padding of tiles.
        prefill_tokens: tokens of a prefill call in one data shard.
        sizes: the sampler's sizes.
        mesh: the sampler's mesh.
    """

    decode: Program
    prefill: Program
    weights_bytes: int
    page_bytes: int
    prefill_tokens: int
    sizes: SamplerConfig
    mesh: Mesh


def update_set(job: Job, setting: Setting, devices: Sequence[Any]) -> UpdateSet:
    """The gradient and optimizer programs of an update."""
    mesh, config = make_mesh(setting.mesh, devices), job.config
    made = update_programs(
        job.model, config.objective, config.optimizer, config.model, mesh, row_len=job.row_len
    )
    state, accumulator, arrays = abstract_arguments(
        job.model, config.optimizer, mesh=mesh, rows=setting.rows, row_len=job.row_len
    )
    reference = state.params if config.objective.kl_coef > 0 else None
    return UpdateSet(
        accumulate=Program(
            "update: gradients", made.accumulate, (state.params, accumulator, arrays, reference)
        ),
        apply=Program("update: optimizer", made.apply, (state, accumulator)),
        params_bytes=device_bytes(state.params),
        moments_bytes=device_bytes(state.opt_state),
        reference_bytes=device_bytes(reference),
        params=state.params,
    )


def sync_programs(job: Job, params: Any, setting: Setting) -> list[Program]:
    """The steps of the weight sync, run one after the other."""
    # The trainer's order of devices: one jitted function reshards from mesh to mesh.
    trainer = jax.tree.leaves(params)[0].sharding.mesh
    mesh = _sampler_mesh(setting, list(trainer.devices.flat))
    return [_program(p) for p in weight_sync_programs(params, job.config.model.dtype, mesh)]


def sampler_set(
    job: Job, setting: Setting, devices: Sequence[Any], *, slots: int, pages: int
) -> SamplerSet:
    """The sampler's programs with `slots` slots and `pages` pages in each data shard.

    The programs span the complete topology. No collective crosses data shards, so a sampler on
    one process's devices has the same bytes a device.
    """
    mesh = _sampler_mesh(setting, devices)
    shards = mesh.shape["data"]
    sizes = dataclasses.replace(
        SamplerConfig.of_run(job.config, max_len=job.max_len),
        slots=slots * shards,
        num_pages=pages * shards,
    )
    decode = _program(decode_program(job.model, sizes, mesh))
    prefill = _program(prefill_program(job.model, sizes, mesh))
    token_BT = prefill.args[2]
    return SamplerSet(
        decode=decode,
        prefill=prefill,
        weights_bytes=device_bytes(decode.args[0]),
        page_bytes=device_bytes(decode.args[1]) // pages,
        prefill_tokens=token_BT.shape[0] * token_BT.shape[1] // shards,
        sizes=sizes,
        mesh=mesh,
    )


def _sampler_mesh(setting: Setting, devices: Sequence[Any]) -> Mesh:
    tensor = setting.sampler_tensor
    return make_sampler_mesh(devices, data=len(devices) // tensor, tensor=tensor)


def _program(abstract: AbstractProgram) -> Program:
    return Program(abstract.name, abstract.fn, abstract.args)
