"""vLLM's CPU build as a side of `benchmarks/sampler.py`.

Settings: `dtype`, `block_size`, `kv_gib`, `prefix_cache`, `logprobs`.
"""

from __future__ import annotations

import os
from typing import Any

import side


def load(job: dict[str, Any]) -> side.Generate:
    cpus, settings = side.pin(job["threads"]), job["settings"]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cpus))
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(settings["kv_gib"])
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    from vllm import LLM, SamplingParams

    llm = LLM(
        job["weights"],
        skip_tokenizer_init=True,
        dtype=settings["dtype"],
        max_model_len=job["max_len"],
        max_num_seqs=job["slots"],
        block_size=settings["block_size"],
        enable_prefix_caching=settings["prefix_cache"],
        **settings.get("engine", {}),
    )

    def generate(requests: list[dict[str, Any]]) -> side.Sampled:
        params = [
            SamplingParams(
                temperature=1.0,
                max_tokens=request["tokens"],
                # Forces the length by itself: `min_tokens` would mask logits in every step.
                ignore_eos=True,
                detokenize=False,
                # The chosen token's alone, or none.
                logprobs=0 if settings["logprobs"] else None,
            )
            for request in requests
        ]
        prompts = [{"prompt_token_ids": request["prompt"]} for request in requests]
        outputs = [out.outputs[0] for out in llm.generate(prompts, params, use_tqdm=False)]
        tokens = [list(out.token_ids) for out in outputs]
        if not settings["logprobs"]:
            return side.Sampled(tokens, None, {})
        logprobs = [
            [step[token].logprob for step, token in zip(out.logprobs, out.token_ids, strict=True)]
            for out in outputs
        ]
        return side.Sampled(tokens, logprobs, {})

    return generate


if __name__ == "__main__":
    side.serve(load)
