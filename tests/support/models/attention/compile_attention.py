"""Compiles forward + backward of one row's attention for a chip that is not here; prints JSON.

    python tests/support/models/attention/compile_attention.py tpu splash 53248
    python tests/support/models/attention/compile_attention.py gpu chunked 13312 26624 --target=FILE
    python tests/support/models/attention/compile_attention.py tpu splash 53248 --shards=4

The shapes are Qwen3-4B's; with several shards each device has its part of the queries and all keys.
Its own process, because libtpu and a fresh back end are
wanted; one at a time, because libtpu serves one process of a machine.
"""

import argparse
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
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from polaris_jax.models.attention import ContextShard, attend
from polaris_jax.plan.compile import hold_libtpu

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 32, 8, 128
TPU = "v5p:2x2x1"


def devices_of(platform: str, target: str | None):
    if platform == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name=TPU).devices
    if platform == "gpu":
        assert target is not None
        return topologies.get_topology_desc(
            "h100", platform="cuda", topology="1x1x4", target_config=Path(target).read_text()
        ).devices
    return jax.devices()


def compiled(devices, back_end: str, length: int, *, packed: bool, shards: int) -> dict:
    mesh = Mesh(np.array(devices[:shards]), ("rows",))
    whole, part = PartitionSpec(), PartitionSpec(None, "rows")
    context = ContextShard("rows", shards) if shards > 1 else None

    def rows(spec: PartitionSpec, *shape: int, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
        where = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct((1, length, *shape), dtype, sharding=where)

    def run(q, k, v, dout, segment_BS):
        def forward(*qkv):
            segments = segment_BS if packed else None
            return attend(*qkv, segments, backend=back_end, context=context)

        out, back = jax.vjp(forward, q, k, v)
        return out, *back(dout)

    run = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(part, whole, whole, part, whole),
        # A shard's own share of the keys' gradients: what a gather's transpose would add up.
        out_specs=(part, part, part, part),
        check_vma=False,
    )
    query, key = rows(part, NUM_HEADS, HEAD_DIM), rows(whole, NUM_KV_HEADS, HEAD_DIM)
    began = time.perf_counter()
    program = jax.jit(run).lower(query, key, key, query, rows(whole, dtype=jnp.int32)).compile()
    memory, text = program.memory_analysis(), program.as_text()
    return {
        "back_end": back_end,
        "length": length,
        "packed": packed,
        "shards": shards,
        "seconds": round(time.perf_counter() - began, 1),
        "temporaries": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "kernels": sum(text.count(f'custom_call_target="{name}') for name in KERNELS),
    }


# Pallas on TPU, Pallas on GPU, cuDNN's forward and backward.
KERNELS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "__cudnn$fmha")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("platform", choices=["cpu", "gpu", "tpu"])
    parser.add_argument("back_end")
    parser.add_argument("lengths", type=int, nargs="+")
    parser.add_argument("--target")
    parser.add_argument("--one_segment", action="store_true")
    parser.add_argument("--shards", type=int, default=1)
    args = parser.parse_args()
    if args.platform == "tpu":
        hold_libtpu(partial(print, file=sys.stderr))
    devices = devices_of(args.platform, args.target)
    for length in args.lengths:
        line = compiled(
            devices, args.back_end, length, packed=not args.one_segment, shards=args.shards
        )
        print(json.dumps({"platform": args.platform} | line), flush=True)


if __name__ == "__main__":
    main()
