"""Compiles the sampler's programs for chips that are not here; prints memory as JSON.

    python tests/rollout/compile_sampler.py tpu v5p:2x2x1
    python tests/rollout/compile_sampler.py cuda 1x1x4 TARGET_CONFIG

Its own process, because libtpu and a fresh backend are wanted; one at a time, because libtpu serves
one process of a machine.
"""

import dataclasses
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from polaris_jax.config import MeshSection
from polaris_jax.models import Qwen, param_axes, param_shapes
from polaris_jax.models.presets import preset
from polaris_jax.plan.compile import hold_libtpu
from polaris_jax.rollout import SamplerConfig
from polaris_jax.rollout.abstract_programs import (
    decode_program,
    prefill_program,
    weight_sync_programs,
)
from polaris_jax.rollout.pool_size import page_bytes
from polaris_jax.sharding import (
    TRAINER_RULES,
    make_mesh,
    make_sampler_mesh,
    param_shardings,
)

MODEL = preset("Qwen3-4B")
SIZES = SamplerConfig(
    slots=64, page_size=64, max_len=53_248, decode_steps=16, prefill_chunk=512, dtype="bfloat16"
)
PAGES_A_SHARD = (2_000, 4_000)


def devices_of(platform: str, topology: str, target_config: str | None):
    if platform == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    assert target_config is not None
    return topologies.get_topology_desc(
        "h100",
        platform="cuda",
        topology=topology,
        target_config=Path(target_config).read_text(),
    ).devices


def compiled(program) -> dict:
    began = time.perf_counter()
    executable = program.lower().compile()
    memory, text = executable.memory_analysis(), executable.as_text()
    kinds = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "collectives": {k: text.count(f" {k}(") + text.count(f" {k}-start(") for k in kinds},
        "kernels": text.count("tpu_custom_call") + text.count("__gpu$xla.gpu.triton"),
    }


def report(devices, platform: str, tensor: int, programs: list[str]) -> None:
    mesh = make_sampler_mesh(devices, tensor=tensor)
    data = mesh.shape["data"]
    config = dataclasses.replace(SIZES, slots=SIZES.slots * data)
    for kind in programs:
        for pages in PAGES_A_SHARD:
            sized = dataclasses.replace(config, num_pages=pages * data)
            make = decode_program if kind.startswith("decode") else prefill_program
            if kind.endswith("-xla"):
                sized = dataclasses.replace(sized, attention="xla")
            line = {
                "platform": platform,
                "program": kind,
                "data": data,
                "tensor": tensor,
                "pool": pages * page_bytes(MODEL, sized, mesh, jnp.bfloat16),
            }
            print(json.dumps(line | compiled(make(MODEL, sized, mesh))), flush=True)


def report_sync(devices, platform: str, tensor: int) -> None:
    trainer = make_mesh(MeshSection(), devices)
    leaves = {p: jax.ShapeDtypeStruct(s, jnp.float32) for p, s in param_shapes(MODEL).items()}
    where = param_shardings(leaves, trainer, TRAINER_RULES, axes=param_axes(MODEL))
    params = Qwen.from_params(
        MODEL,
        {p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[p]) for p, x in leaves.items()},
    )
    mesh = make_sampler_mesh(list(trainer.devices.flat), tensor=tensor)
    for program in weight_sync_programs(params, jnp.bfloat16, mesh):
        line = {"platform": platform, "program": program.name, "tensor": tensor}
        print(json.dumps(line | compiled(program)), flush=True)


def main() -> None:
    platform, topology, *rest = sys.argv[1:]
    if platform == "tpu":
        hold_libtpu(partial(print, file=sys.stderr))
    devices = devices_of(platform, topology, rest[0] if rest else None)
    kinds = ["decode", "prefill", "decode-xla"]
    report(devices, platform, 1, kinds)
    report(devices, platform, 4, kinds[:2])
    report_sync(devices, platform, 1)
    report_sync(devices, platform, 4)


if __name__ == "__main__":
    main()
