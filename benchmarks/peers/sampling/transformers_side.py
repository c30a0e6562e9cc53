"""transformers' side of `benchmarks/sampler.py`: static batches, or its continuous batching.

Settings: `mode` "static" with `batches`, or "continuous" with `page_size`. A static batch runs as
long as its longest request; with several batches the requests are sorted by length, which a real
rollout cannot know.
"""

from __future__ import annotations

from typing import Any

import side
import torch
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

PREFILL_TOKENS = 512  # of a call of continuous batching


class ChosenLogprobs(LogitsProcessor, StoppingCriteria):
    """Keeps the chosen tokens' log-probs; keeping all logits would take gigabytes.

    `generate` calls it as a logits processor before a token is drawn and as a stopping criterion
    once it is appended.
    """

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []
        self._logp: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any) -> torch.Tensor:
        if self._logp is None:
            self._logp = scores.log_softmax(-1)
            return scores
        self.steps.append(self._logp.gather(1, input_ids[:, -1:])[:, 0])
        self._logp = None
        return torch.zeros(len(input_ids), dtype=torch.bool)


def load(job: dict[str, Any]) -> side.Generate:
    torch.set_num_threads(len(side.pin(job["threads"])))
    model = AutoModelForCausalLM.from_pretrained(job["weights"], dtype=torch.float32).eval()
    settings = job["settings"]
    if settings["mode"] == "continuous":
        return _continuous(model, job)
    return lambda requests: _static(model, requests, settings["batches"])


def _sampling(**more: Any) -> GenerationConfig:
    return GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0, **more
    )


def _static(model: Any, requests: list[dict[str, Any]], batches: int) -> side.Sampled:
    order = sorted(range(len(requests)), key=lambda i: -requests[i]["tokens"])
    size, paid = -(-len(requests) // batches), 0
    tokens: list[list[int]] = [[] for _ in requests]
    logprobs: list[list[float]] = [[] for _ in requests]
    for start in range(0, len(requests), size):
        batch = order[start : start + size]
        width = max(len(requests[i]["prompt"]) for i in batch)
        prompts = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(prompts)
        for row, i in enumerate(batch):
            prompt = requests[i]["prompt"]
            prompts[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        longest = requests[batch[0]]["tokens"]
        chosen = ChosenLogprobs()
        out = model.generate(
            prompts,
            attention_mask=mask,
            generation_config=_sampling(max_new_tokens=longest, eos_token_id=None),
            logits_processor=LogitsProcessorList([chosen]),
            stopping_criteria=StoppingCriteriaList([chosen]),
        )[:, width:]
        logp = torch.stack(chosen.steps, 1)
        paid += len(batch) * longest
        for row, i in enumerate(batch):
            count = requests[i]["tokens"]
            tokens[i], logprobs[i] = out[row, :count].tolist(), logp[row, :count].tolist()
    useful = sum(request["tokens"] for request in requests)
    return side.Sampled(tokens, logprobs, {"row_waste": 1 - useful / paid})


def _continuous(model: Any, job: dict[str, Any]) -> side.Generate:
    page_size = job["settings"]["page_size"]
    manager = model.init_continuous_batching(
        generation_config=_sampling(max_new_tokens=job["max_len"], eos_token_id=-1),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=page_size,
            # By itself it takes most of the machine's memory; this is enough for all at once.
            num_blocks=job["slots"] * -(-job["max_len"] // page_size),
            max_requests_per_batch=job["slots"],
            max_batch_tokens=max(PREFILL_TOKENS, job["slots"]),
            return_logprobs=True,
        ),
    )
    manager.start()

    def generate(requests: list[dict[str, Any]]) -> side.Sampled:
        ids = [manager.add_request(r["prompt"], max_new_tokens=r["tokens"]) for r in requests]
        ended: dict[str, Any] = {}
        while len(ended) < len(requests):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                if result.error is not None:
                    raise RuntimeError(result.error)
                ended[result.request_id] = result
            elif result is None and not manager.is_running():
                raise RuntimeError(
                    f"the generation thread ended: {manager.background_thread_status.fatal_error}"
                )
        return side.Sampled(
            [list(ended[i].generated_tokens) for i in ids],
            [list(ended[i].logprobs) for i in ids],
            {},
        )

    return generate


if __name__ == "__main__":
    side.serve(load)
