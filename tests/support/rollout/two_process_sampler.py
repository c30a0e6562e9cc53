"""One of two processes that share a sampler: the same requests, an abort that only one asks for.

    python tests/support/rollout/two_process_sampler.py PORT RANK DATA TENSOR

Prints one JSON line: tokens and log-probs, the compilations of a second round, how the abort ended,
and the pool's size where memory is left to decide.
"""

import dataclasses
import json
import os
import sys

port, rank, data, tensor = (int(word) for word in sys.argv[1:])
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax  # noqa: E402

jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)

import numpy as np  # noqa: E402

from polaris_jax.config import MeshSection  # noqa: E402
from polaris_jax.models import param_axes  # noqa: E402
from polaris_jax.rollout import (  # noqa: E402
    RolloutAborted,
    Sampler,
    decode_state,
)
from polaris_jax.sharding import (  # noqa: E402
    TRAINER_RULES,
    make_mesh,
    make_sampler_mesh,
    param_shardings,
    private_copies,
    split_devices,
)
from tests.rollout.test_sampler_mesh import PARAMS, PROMPTS, SIZES, WIDE, wide_model  # noqa: E402


def main() -> None:
    host = jax.tree.map(np.asarray, wide_model())
    trainer = make_mesh(MeshSection(fsdp=4))
    where = param_shardings(wide_model(), trainer, TRAINER_RULES, axes=param_axes(WIDE))
    mesh = make_sampler_mesh(split_devices(0, 2)[1], data=data, tensor=tensor)
    config = dataclasses.replace(SIZES, dispatch_ahead=data > 1)
    sampler = Sampler(host, config, mesh=mesh)  # weights alike in both, on the host
    first = sampler.generate(PROMPTS, PARAMS)
    sampler.release_pool()
    sampler.update_weights(private_copies(host, where))  # the trainer's, over both
    sampler.reset_stats()
    second = sampler.generate(PROMPTS, PARAMS)
    compiles = sampler.stats()["compiles"]
    scoring = dataclasses.replace(PARAMS, n=1, max_tokens=1, prompt_logprobs=True)
    scored = [group[0].prompt_logprobs for group in sampler.generate(PROMPTS, scoring)]
    polls = iter(range(1000))
    try:
        sampler.generate(PROMPTS, PARAMS, should_abort=lambda: rank == 1 and next(polls) == 2)
        ended = "whole"
    except RolloutAborted:
        ended = "aborted"
    # The process with less memory decides for both.
    decode_state.pages_with_room = lambda *_, **__: 100 - 10 * rank
    pages = decode_state.pool_pages(
        WIDE, SIZES.__class__(**{**SIZES.__dict__, "num_pages": 0}), mesh, "float32"
    )
    print(
        json.dumps(
            {
                "tokens": [[r.token_ids for r in g] for g in second],
                "logprobs": [[r.logprobs for r in g] for g in second],
                "same": first == second,
                "compiles": compiles,
                "ended": ended,
                "scored": scored,
                "pages": pages,
                "used": sampler.stats()["pages_used"],
                "share": sampler.share,
                "members": sampler.members,
            }
        ),
        flush=True,
    )
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
