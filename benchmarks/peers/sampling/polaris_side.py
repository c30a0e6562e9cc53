"""Our side of `benchmarks/sampler.py`. Settings: fields of SamplerConfig."""

from __future__ import annotations

import os
from typing import Any

import side


def load(job: dict[str, Any]) -> side.Generate:
    os.environ["JAX_PLATFORMS"] = "cpu"
    side.pin(job["threads"])
    from polaris_jax.models import load_pretrained
    from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams

    dtype = job["settings"].get("dtype", "float32")
    model, _ = load_pretrained(job["weights"], dtype=dtype)
    sizes = {"slots": job["slots"], "max_len": job["max_len"], "num_pages": 0}
    sampler = Sampler(model, SamplerConfig(**{**sizes, **job["settings"]}))
    del model

    def generate(requests: list[dict[str, Any]]) -> side.Sampled:
        sampler.reset_stats()
        params = SamplingParams(
            n=1,
            max_tokens=[request["tokens"] for request in requests],
            seed=[request["seed"] for request in requests],
            stop_token_ids=(),  # the lengths are forced
        )
        groups = sampler.generate([request["prompt"] for request in requests], params)
        responses = [group[0] for group in groups]
        stats = sampler.stats()
        return side.Sampled(
            [list(response.token_ids) for response in responses],
            [list(response.logprobs) for response in responses],
            {"row_waste": stats["row_waste"], "stats": {**stats, "kernels": sampler.kernels}},
        )

    return generate


if __name__ == "__main__":
    side.serve(load)
