"""Our side of `benchmarks/sampler.py`. Settings: fields of SamplerConfig."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import side


def load(job: dict[str, Any]) -> side.Generate:
    os.environ["JAX_PLATFORMS"] = "cpu"
    side.pin(job["threads"])
    from polaris_jax.models import load_pretrained
    from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams

    model, _ = load_pretrained(job["weights"], dtype="float32")
    sizes = {"slots": job["slots"], "max_len": job["max_len"], "num_pages": 0}
    sampler = Sampler(model, SamplerConfig(**{**sizes, **job["settings"]}))
    del model
    paid_row_steps = _paid_row_steps()

    def generate(requests: list[dict[str, Any]]) -> side.Sampled:
        sampler.reset_stats()
        paid = paid_row_steps()
        params = SamplingParams(
            n=1,
            max_tokens=[request["tokens"] for request in requests],
            seed=[request["seed"] for request in requests],
        )
        groups = sampler.generate([request["prompt"] for request in requests], params)
        responses = [group[0] for group in groups]
        stats = sampler.stats()
        paid = paid_row_steps() - paid
        return side.Sampled(
            [list(response.token_ids) for response in responses],
            [list(response.logprobs) for response in responses],
            {"row_waste": 1 - stats["response_tokens"] / paid, "stats": stats},
        )

    return generate


def _paid_row_steps() -> Callable[[], int]:
    """Counts the rows that decode computes, times its steps: `stats` has no such number."""
    from polaris_jax.rollout.engine import Engine

    collect, paid = Engine.collect, 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal paid
        result = collect(*args, **kwargs)
        paid += result.rows * result.steps
        return result

    Engine.collect = counted
    return lambda: paid


if __name__ == "__main__":
    side.serve(load)
