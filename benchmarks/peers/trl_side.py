"""TRL's side of `benchmarks/update.py`; run by the interpreter of an environment with trl.

    python benchmarks/peers/trl_side.py WEIGHTS STEPS THREADS WORKLOAD SETTINGS

SETTINGS is JSON: `batch`, rows of a forward pass, and `dtype`. GRPOTrainer's own loss, gradients
accumulated over the batches, and torch's AdamW. As in its `train`, the complete batch is padded to
its longest response before it is split. bfloat16 is its default: float32 weights under autocast.
Prints one JSON line.
"""

from __future__ import annotations

import importlib.metadata
import json
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "sampling"))

import case as step_case
import side
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer


def main() -> None:
    weights, steps, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    workload, settings = step_case.WORKLOADS[sys.argv[4]], json.loads(sys.argv[5])
    batch, in_bfloat16 = settings["batch"], settings["dtype"] == "bfloat16"
    torch.set_num_threads(threads)
    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    rows = workload.prompts * step_case.RESPONSES
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_dict({"prompt": ["a"] * rows}),
        processing_class=PreTrainedTokenizerFast.from_pretrained(weights),
        args=GRPOConfig(
            output_dir="/tmp/trl_benchmark",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=rows // batch,
            num_generations=step_case.RESPONSES,
            max_completion_length=workload.max_response_tokens,
            temperature=step_case.TEMPERATURE,
            beta=0.0,
            epsilon=step_case.CLIP_LOW,
            epsilon_high=step_case.CLIP_HIGH,
            loss_type="dapo",
            use_cpu=True,
            bf16=in_bfloat16,
            gradient_checkpointing=False,
            report_to=[],
        ),
    )
    trainer.current_gradient_accumulation_steps = rows // batch  # what its train() would set
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=step_case.LEARNING_RATE,
        betas=step_case.BETAS,
        eps=step_case.EPS,
        weight_decay=step_case.WEIGHT_DECAY,
    )
    the_case = step_case.make_case(workload)
    inputs = {k: torch.from_numpy(v) for k, v in step_case.padded(the_case).items()}
    total = inputs["completion_mask"].sum()
    batches = [
        {name: x[i : i + batch] for name, x in inputs.items()} | {"num_items_in_batch": total}
        for i in range(0, rows, batch)
    ]
    model.train()
    seconds, losses = [], []
    for _ in range(step_case.WARM_STEPS + steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        step_loss = 0.0
        for part in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
                loss = trainer._compute_loss(model, part)
            loss.backward()
            step_loss += float(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), step_case.MAX_GRAD_NORM)
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        losses.append(step_loss)
    print(
        json.dumps(
            {
                "side": "trl",
                "version": importlib.metadata.version("trl"),
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
