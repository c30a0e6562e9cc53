"""One of two processes: syncs sharded trainer weights to its own sampler mesh and samples alone.

    python tests/support/rollout/two_process_sync.py PORT RANK DATA TENSOR

Prints one JSON line: the tokens, the sync's bytes, and what lies on this process's devices.
"""

import json
import os
import sys

port, rank, data, tensor = (int(word) for word in sys.argv[1:])
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax  # noqa: E402

jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)

import numpy as np  # noqa: E402

from polaris_jax.config import MeshSection  # noqa: E402
from polaris_jax.models import param_axes  # noqa: E402
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams  # noqa: E402
from polaris_jax.rollout.fused_weights import FusedWeights  # noqa: E402
from polaris_jax.sharding import (  # noqa: E402
    TRAINER_RULES,
    make_mesh,
    make_sampler_mesh,
    param_shardings,
    private_copies,
)
from tests.support.rollout.rollout_cases import CONFIG, random_prompts, small_model  # noqa: E402


def main() -> None:
    trainer = make_mesh(MeshSection(fsdp=4, tensor=2))
    where = param_shardings(small_model(), trainer, TRAINER_RULES, axes=param_axes(CONFIG))
    host = jax.tree.map(np.asarray, small_model())
    params = private_copies(host, where)
    mesh = make_sampler_mesh(jax.local_devices(), data=data, tensor=tensor)
    # Alone on one device it also calls ahead, which lays rows out on that device by itself.
    ahead = data * tensor == 1
    sizes = SamplerConfig(slots=4, num_pages=40, max_len=48, dispatch_ahead=ahead)
    sampler = Sampler(params, sizes, mesh=mesh)
    sampler.update_weights(params)
    # A different number of calls in each: a collective in there would hang.
    for _ in range(1 + rank):
        groups = sampler.generate(random_prompts(5, longest=20), SamplingParams(max_tokens=12))
    weights = sampler._weights.model
    fused = isinstance(weights, FusedWeights)  # one device: matrices of their own
    leaf = jax.tree.leaves(weights.qkv)[0] if fused else weights.layers.q_DNH[...]
    print(
        json.dumps(
            {
                "tokens": [g[0].token_ids for g in groups],
                "logprobs": [g[0].logprobs for g in groups],
                "bytes": sampler.stats()["weight_sync_bytes"],
                "local": sorted({s.device.process_index for s in leaf.addressable_shards}),
                "addressable": leaf.is_fully_addressable,
                "share": leaf.size // leaf.addressable_shards[0].data.size,
            }
        ),
        flush=True,
    )
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
