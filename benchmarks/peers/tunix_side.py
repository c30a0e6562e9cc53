"""tunix's side of `benchmarks/update.py`; run by the interpreter of an environment with tunix.

    python benchmarks/peers/tunix_side.py WEIGHTS STEPS THREADS WORKLOAD SETTINGS

tunix's grpo_loss_fn under nnx.value_and_grad and optax's AdamW in one nnx.jit, as its trainer does,
on one padded batch in float32. SETTINGS is JSON and has nothing that tunix takes. Prints one JSON
line.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "sampling"))
os.environ["JAX_PLATFORMS"] = "cpu"

import case as step_case
import jax
import jax.numpy as jnp
import optax
import side
from flax import nnx
from tunix.models.qwen3 import model as qwen3
from tunix.models.qwen3 import params as qwen3_params
from tunix.rl import algo_core, common


def main() -> None:
    weights, steps, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    workload = step_case.WORKLOADS[sys.argv[4]]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    began = time.perf_counter()
    hf = json.loads((Path(weights) / "config.json").read_text())
    theta = hf.get("rope_theta") or hf["rope_parameters"]["rope_theta"]
    config = qwen3.ModelConfig(
        num_layers=hf["num_hidden_layers"],
        vocab_size=hf["vocab_size"],
        embed_dim=hf["hidden_size"],
        hidden_dim=hf["intermediate_size"],
        num_heads=hf["num_attention_heads"],
        head_dim=hf["head_dim"],
        num_kv_heads=hf["num_key_value_heads"],
        rope_theta=int(theta),
        norm_eps=hf["rms_norm_eps"],
        use_tied_embedding=hf["tie_word_embeddings"],
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with mesh:
        model = qwen3_params.create_model_from_safe_tensors(
            weights, config, mesh, dtype=jnp.float32
        )
        adamw = optax.chain(
            optax.clip_by_global_norm(step_case.MAX_GRAD_NORM),
            optax.adamw(
                step_case.LEARNING_RATE,
                b1=step_case.BETAS[0],
                b2=step_case.BETAS[1],
                eps=step_case.EPS,
                weight_decay=step_case.WEIGHT_DECAY,
            ),
        )
        optimizer = nnx.Optimizer(model, adamw, wrt=nnx.Param)
        algorithm = SimpleNamespace(
            beta=0.0,
            epsilon=step_case.CLIP_LOW,
            epsilon_high=step_case.CLIP_HIGH,
            loss_algo="grpo",
            loss_agg_mode="token-mean",
            temperature=step_case.TEMPERATURE,
            kl_loss_mode="kl",
        )
        the_case = step_case.make_case(workload)
        arrays = step_case.padded(the_case)
        example = common.TrainExample(
            **{k: jnp.asarray(v) for k, v in arrays.items()},
            ref_per_token_logps=None,
            old_per_token_logps=None,
        )

        def step(model, optimizer, example):
            def loss_fn(model, example):
                return algo_core.grpo_loss_fn(
                    model, example, algorithm, pad_id=0, eos_id=workload.vocab - 1
                )

            (loss, _), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model, example)
            optimizer.update(model, grads)
            return loss

        jitted = nnx.jit(step, donate_argnames=("optimizer",))
        seconds, losses = [], []
        for _ in range(step_case.WARM_STEPS + steps):
            start = time.perf_counter()
            losses.append(float(jitted(model, optimizer, example)))
            jax.block_until_ready(nnx.state(model))
            seconds.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "side": "tunix",
                "version": importlib.metadata.version("google-tunix"),
                "real_tokens": the_case.real_tokens,
                **side.libraries(),
                "seconds": seconds[step_case.WARM_STEPS :],
                "loss": losses[0],
                "start_s": time.perf_counter() - began - sum(seconds[step_case.WARM_STEPS :]),
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
