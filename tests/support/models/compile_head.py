"""Compiles the head, forward + backward, of one long row for a v5p that is not here.

    python tests/support/models/compile_head.py [counted_loss | target_logprobs] [chunk_tokens]

Qwen3-4B's head: float32 master, bfloat16 compute, one row of 53,248 tokens on one device, with a
loss of the log-prob and the entropy. `counted_loss` is what the update runs; `target_logprobs` is
what the public `token_logprobs` runs, and jax differentiates. Prints JSON: bytes of temporaries,
and of the outputs, which the gradients are among.
"""

import json
import os
import sys
from functools import partial

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from polaris_jax.models import HeadLoop, counted_loss, target_logprobs
from polaris_jax.models.heads.logprobs import CHUNK_TOKENS
from polaris_jax.plan.compile import hold_libtpu

TOKENS, VOCAB, HIDDEN = 53_248, 151_936, 2560


def main() -> None:
    head = sys.argv[1] if len(sys.argv) > 1 else "counted_loss"
    chunk = int(sys.argv[2]) if len(sys.argv) > 2 else CHUNK_TOKENS
    hold_libtpu(partial(print, file=sys.stderr))
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1")
    mesh = Mesh(np.array(topology.devices[:1]), ("one",))
    here = NamedSharding(mesh, PartitionSpec())

    def array(dtype, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=here)

    def token_loss(logp, entropy, terms):
        return terms["weight_BT"] * jnp.exp(logp - terms["old_logp_BT"]) - 0.01 * entropy

    def gradients(head_VD, hidden_BTD, target_BT, temperature_BT, counted_BT, terms):
        def loss(head_VD, hidden_BTD):
            if head == "target_logprobs":
                logp_BT, entropy_BT = target_logprobs(
                    head_VD, hidden_BTD, target_BT, temperature_BT, chunk_tokens=chunk
                )
                loss_BT = jnp.where(counted_BT, token_loss(logp_BT, entropy_BT, terms), 0.0)
                return jnp.sum(loss_BT), (logp_BT, entropy_BT)
            total, logp_BT, entropy_BT = counted_loss(
                *(head_VD, hidden_BTD, target_BT, temperature_BT, counted_BT, terms),
                token_loss=token_loss,
                loop=HeadLoop(chunk),
            )
            return total, (logp_BT, entropy_BT)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(head_VD, hidden_BTD)

    program = (
        jax.jit(gradients, out_shardings=here)
        .lower(
            array(jnp.float32, VOCAB, HIDDEN),
            array(jnp.bfloat16, 1, TOKENS, HIDDEN),
            array(jnp.int32, 1, TOKENS),
            array(jnp.float32, 1, TOKENS),
            array(jnp.bool, 1, TOKENS),
            {name: array(jnp.float32, 1, TOKENS) for name in ("weight_BT", "old_logp_BT")},
        )
        .compile()
    )
    memory = program.memory_analysis()
    print(
        json.dumps(
            {"temporaries": memory.temp_size_in_bytes, "outputs": memory.output_size_in_bytes}
        )
    )


if __name__ == "__main__":
    main()
