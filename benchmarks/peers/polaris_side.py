"""Our side of `benchmarks/update.py`: the product's Updater on one packed batch.

    python benchmarks/peers/polaris_side.py --weights DIR [--workload U1] [--steps 3] [--threads 2]
        [--scale 1] [--dtype float32] [--shape peers|vocabulary|100m] [--share_prompts auto|on|off]
        [--rows N]

Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "sampling"))


def main() -> None:
    parser = argparse.ArgumentParser(description="one GRPO step of polaris_jax")
    parser.add_argument("--weights", default="", help="HF directory; empty: random, --shape")
    parser.add_argument("--shape", default="peers", choices=("peers", "vocabulary", "100m"))
    parser.add_argument("--workload", default="U1")
    parser.add_argument("--share_prompts", default="auto", choices=("auto", "on", "off"))
    parser.add_argument("--dtype", default="float32", help="of the forward and backward pass")
    for name, default in (("steps", 3), ("threads", 2), ("scale", 1), ("rows", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    began = time.perf_counter()

    import case as step_case
    import jax
    import numpy as np
    import side
    from shapes import SHAPES

    from polaris_jax.batch import pack
    from polaris_jax.config import MeshSection, ModelSection, ObjectiveSection, OptimizerSection
    from polaris_jax.models import Decoder, load_pretrained
    from polaris_jax.records import Graded
    from polaris_jax.rollout.live import CompileCounter
    from polaris_jax.sharding import make_mesh
    from polaris_jax.train.state import init_train_state
    from polaris_jax.train.update import Updater

    if args.weights:
        model, _ = load_pretrained(args.weights, dtype="float32")
    else:
        model = Decoder.init(SHAPES[args.shape], jax.random.key(0))
    workload = step_case.WORKLOADS[args.workload]
    rows = args.rows or workload.rows
    the_case = step_case.make_case(workload, scale=args.scale)
    groups, size = len(the_case.responses) // step_case.RESPONSES, step_case.RESPONSES

    def by_group(values: list) -> list:
        return [values[g * size : (g + 1) * size] for g in range(groups)]

    graded = Graded(
        problem_ids=[str(g) for g in range(groups)],
        prompts=[the_case.prompts[g * size].tolist() for g in range(groups)],
        golds=["0"] * groups,
        token_ids=[[r.tolist() for r in group] for group in by_group(the_case.responses)],
        logprobs=[[[0.0] * len(r) for r in group] for group in by_group(the_case.responses)],
        texts=[[""] * size] * groups,
        finish_reasons=[["stop"] * size] * groups,
        reward_PR=np.zeros((groups, size), np.float32),
    )
    objective = ObjectiveSection(clip_low=step_case.CLIP_LOW, clip_high=step_case.CLIP_HIGH)
    optimizer = OptimizerSection(learning_rate=step_case.LEARNING_RATE)
    mesh = make_mesh(MeshSection(), jax.devices()[:1])
    updater = Updater(
        objective,
        optimizer,
        ModelSection(dtype=args.dtype, remat="none"),
        mesh,
        rows=rows,
        row_len=workload.row_len,
        share_prompts=args.share_prompts,
    )
    state = init_train_state(model, optimizer, mesh)
    config = model.config
    del model
    seconds, losses, compiles, counter, batch = [], [], [], CompileCounter(), None
    for _ in range(step_case.WARM_STEPS + args.steps):
        counter.count = 0
        start = time.perf_counter()
        with counter:
            batch = pack(
                graded,
                advantage_PR=the_case.advantages.reshape(groups, size),
                fresh_PR=np.ones((groups, size), bool),
                row_len=workload.row_len,
                rows=rows,
                objective=objective,
                max_response_tokens=workload.max_response_tokens,
                temperature=step_case.TEMPERATURE,
                share_prompts=updater.shares_prompts(config),
            )
            state, metrics = updater.update(state, batch)
            jax.block_until_ready(state)
        compiles.append(counter.count)
        seconds.append(time.perf_counter() - start)
        losses.append(metrics["update/loss"].value)
    timed = seconds[step_case.WARM_STEPS :]
    # See benchmarks/update.py: the embedding table is not counted, a head of its own is; a shared
    # prompt counts once. The sum of 2 x position + 1 is a length's square.
    matmul_parameters = config.num_parameters - config.vocab_size * config.hidden_size
    position_T = batch.position_BT[batch.segment_BT > 0].astype(np.int64)
    flops = 6 * matmul_parameters * len(position_T) + 6 * config.num_layers * (
        config.num_heads * config.head_dim * int((2 * position_T + 1).sum())
    )
    print(
        json.dumps(
            {
                "side": "polaris_jax",
                "seconds": timed,
                "loss": losses[0],
                "start_s": time.perf_counter() - began - sum(timed),
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "padding_share": batch.padding_share,
                "real_tokens": the_case.real_tokens,
                "shared_prompt_tokens": batch.shared_prompt_tokens,
                "packed_rows": batch.token_BT.shape[0],
                "model_flops": flops,
                "parameters": config.num_parameters,
                "compiles": compiles,
                **side.libraries(),
            }
        )
    )


if __name__ == "__main__":
    main()
