"""tunix's sampler as a side of `benchmarks/sampler.py`. Settings: `batches`, sorted by length.

A batch runs as long as its longest request. tunix's Llama has a fixed rope_theta of 1e6, whatever
config.json says: the work is the same, the log-probs are not.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import side

NO_TOKEN = -1  # pads prompts and never ends a response: no id of any vocabulary


class TokenIds:
    """tunix's samplers take texts; here a text is its token ids, joined by blanks."""

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in text.split()]

    def decode(self, ids: list[int]) -> str:
        del ids
        return ""

    def bos_id(self) -> None:
        return None

    def eos_id(self) -> int:
        return NO_TOKEN

    def pad_id(self) -> int:
        return NO_TOKEN


def load(job: dict[str, Any]) -> side.Generate:
    os.environ["JAX_PLATFORMS"] = "cpu"
    side.pin(job["threads"])
    import jax
    from tunix.generate import sampler as tunix_sampler

    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with mesh:
        model, config = _model(job["weights"], mesh)
    sampler = tunix_sampler.Sampler(
        model,
        TokenIds(),
        tunix_sampler.CacheConfig(
            cache_size=job["max_len"],
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
        ),
    )
    batches, longest_prompt = job["settings"]["batches"], job["longest_prompt"]

    def generate(requests: list[dict[str, Any]]) -> side.Sampled:
        order = sorted(range(len(requests)), key=lambda i: -requests[i]["tokens"])
        size, paid = -(-len(requests) // batches), 0
        tokens: list[list[int]] = [[] for _ in requests]
        logprobs: list[list[float]] = [[] for _ in requests]
        for start in range(0, len(requests), size):
            batch = order[start : start + size]
            longest = requests[batch[0]]["tokens"]
            with mesh:
                out = sampler(
                    [" ".join(map(str, requests[i]["prompt"])) for i in batch],
                    max_generation_steps=longest,
                    max_prompt_length=longest_prompt,
                    temperature=1.0,
                    top_p=1.0,
                    return_logprobs=True,
                    seed=requests[batch[0]]["seed"],
                )
            paid += len(batch) * longest
            for row, i in enumerate(batch):
                count = requests[i]["tokens"]
                tokens[i] = out.tokens[row][:count].tolist()
                logprobs[i] = list(out.logprobs[row][:count])
        useful = sum(request["tokens"] for request in requests)
        return side.Sampled(tokens, logprobs, {"row_waste": 1 - useful / paid})

    return generate


def _model(weights: str, mesh: Any) -> tuple[Any, Any]:
    import jax.numpy as jnp

    hf = json.loads((Path(weights) / "config.json").read_text())
    common = {
        "num_layers": hf["num_hidden_layers"],
        "vocab_size": hf["vocab_size"],
        "embed_dim": hf["hidden_size"],
        "hidden_dim": hf["intermediate_size"],
        "num_heads": hf["num_attention_heads"],
        "head_dim": hf["head_dim"],
        "num_kv_heads": hf["num_key_value_heads"],
        "rope_theta": int(hf["rope_theta"]),
        "norm_eps": hf["rms_norm_eps"],
    }
    if hf["model_type"] == "qwen3":
        from tunix.models.qwen3 import model as family
        from tunix.models.qwen3 import params

        config = family.ModelConfig(**common, use_tied_embedding=hf["tie_word_embeddings"])
    else:
        from tunix.models.llama3 import model as family
        from tunix.models.llama3 import params

        config = family.ModelConfig(**common, weight_tying=hf["tie_word_embeddings"])
    model = params.create_model_from_safe_tensors(weights, config, mesh, dtype=jnp.float32)
    return model, config


if __name__ == "__main__":
    side.serve(load)
