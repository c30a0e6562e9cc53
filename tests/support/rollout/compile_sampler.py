"""Compiles the sampler's programs for chips that are not here; prints memory as JSON.

    python tests/support/rollout/compile_sampler.py v5p:2x2x1 qwen3-4b --tensor=1,4
    python tests/support/rollout/compile_sampler.py h100:4 r1-distill-qwen-7b --tensor=4 --layers=2

With all layers it also compiles the reference decode and the weight sync. Its own process, because
libtpu and a fresh backend are wanted; one at a time, because libtpu serves one process of a
machine.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from functools import partial

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp

from polaris_jax.config import MeshSection
from polaris_jax.models import Decoder, ModelConfig, param_axes, param_shapes
from polaris_jax.models.presets import preset
from polaris_jax.plan.compile import compile_with_text, hold_libtpu
from polaris_jax.plan.topologies import devices, parse_topology
from polaris_jax.rollout import SamplerConfig
from polaris_jax.rollout.decode_state import page_bytes
from polaris_jax.rollout.programs.abstract import (
    decode_program,
    prefill_program,
    verify_program,
    weight_sync_programs,
)
from polaris_jax.sharding import (
    TRAINER_RULES,
    make_mesh,
    make_sampler_mesh,
    param_shardings,
)

SIZES = SamplerConfig(
    slots=64, page_size=64, max_len=53_248, decode_steps=16, prefill_chunk=512, dtype="bfloat16"
)
MADE_BY = {"decode": decode_program, "prefill": prefill_program, "verify": verify_program}


def compiled(program, *, on_tpu: bool) -> dict:
    began = time.perf_counter()
    executable, text = compile_with_text(program.lower(), on_tpu=on_tpu)
    memory = executable.memory_analysis()
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


def report(
    model: ModelConfig, mesh, kinds: list[str], *, shard_pages: int, attention: str, on_tpu: bool
) -> None:
    data, tensor = mesh.shape["data"], mesh.shape["tensor"]
    config = dataclasses.replace(SIZES, slots=SIZES.slots * data, attention=attention)
    for kind in kinds:
        for pages in (shard_pages, 2 * shard_pages):
            sized = dataclasses.replace(config, num_pages=pages * data)
            make = MADE_BY[kind.split("-")[0]]
            if kind.endswith("-xla"):
                sized = dataclasses.replace(sized, attention="xla")
            if kind.endswith("-int8"):
                sized = dataclasses.replace(sized, kv_dtype="int8")
            line = {
                "program": kind,
                "data": data,
                "tensor": tensor,
                "pool": pages * page_bytes(model, sized, mesh, jnp.bfloat16),
            }
            program = make(model, sized, mesh)
            print(json.dumps(line | compiled(program, on_tpu=on_tpu)), flush=True)


def report_sync(model: ModelConfig, found, tensor: int, *, on_tpu: bool) -> None:
    trainer = make_mesh(MeshSection(), found)
    leaves = {p: jax.ShapeDtypeStruct(s, jnp.float32) for p, s in param_shapes(model).items()}
    where = param_shardings(leaves, trainer, TRAINER_RULES, axes=param_axes(model))
    params = Decoder.from_params(
        model,
        {p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[p]) for p, x in leaves.items()},
    )
    mesh = make_sampler_mesh(list(trainer.devices.flat), tensor=tensor)
    for program in weight_sync_programs(params, jnp.bfloat16, mesh):
        line = {"program": program.name, "tensor": tensor}
        print(json.dumps(line | compiled(program, on_tpu=on_tpu)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("topology")
    parser.add_argument("preset")
    parser.add_argument("--tensor", default="1")
    parser.add_argument("--attention", default="auto", help="back end of decode and prefill")
    parser.add_argument("--kinds", default="decode,prefill")
    parser.add_argument("--layers", type=int, default=0, help="0: all of the model's")
    parser.add_argument("--pages", type=int, default=2_000, help="of a shard's small pool")
    args = parser.parse_args()
    topology, model = parse_topology(args.topology), preset(args.preset)
    on_tpu = topology.platform == "tpu"
    if on_tpu:
        hold_libtpu(partial(print, file=sys.stderr))
    found = devices(topology)
    if args.layers:
        model = dataclasses.replace(model, num_layers=args.layers)
    for tensor in map(int, args.tensor.split(",")):
        whole = not args.layers
        more = ["decode-xla", "decode-int8", "prefill-int8"] if whole and tensor == 1 else []
        kinds = [*args.kinds.split(","), *more]
        mesh = make_sampler_mesh(found, tensor=tensor)
        report(model, mesh, kinds, shard_pages=args.pages, attention=args.attention, on_tpu=on_tpu)
        if whole:
            report_sync(model, found, tensor, on_tpu=on_tpu)


if __name__ == "__main__":
    main()
