"""The GRPO steps that `benchmarks/update.py` times, as numpy: every side gets the same tokens.

U1: 64 responses to 8 prompts of 64 tokens, lengths with a long tail up to 256, a vocabulary of
8,192. U2: a vocabulary of 151,936, 32 responses. U3: responses of up to 1,024 tokens, 16 of them.
Needs numpy alone, so that it imports in the other systems' environments too.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

PROMPT_TOKENS, RESPONSES = 64, 8
TEMPERATURE = 1.0
LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-6, (0.9, 0.999), 1e-8, 0.01, 1.0
CLIP_LOW, CLIP_HIGH = 0.2, 0.28
WARM_STEPS = 1  # before the timed ones: compilation, allocator


@dataclasses.dataclass(frozen=True)
class Workload:
    """A step's size.

    Attributes:
        vocab: token ids are below it.
        prompts: prompts, each with `RESPONSES` responses.
        median: median response length in tokens.
        max_response_tokens: longest response.
        row_len: tokens of our packed rows.
        rows: rows of our microbatch.
    """

    vocab: int
    prompts: int
    median: float
    max_response_tokens: int
    row_len: int
    rows: int


WORKLOADS = {
    "U1": Workload(8192, 8, 81.45, 256, 512, 4),
    "U2": Workload(151_936, 4, 81.45, 256, 512, 4),
    "U3": Workload(8192, 2, 400, 1024, 1536, 2),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """Prompts [B][64], responses [B][n], one advantage a response."""

    prompts: list[np.ndarray]
    responses: list[np.ndarray]
    advantages: np.ndarray

    @property
    def real_tokens(self) -> int:
        """Prompt and response tokens, padding not counted."""
        return sum(len(p) + len(r) for p, r in zip(self.prompts, self.responses, strict=True))


def make_case(workload: Workload, *, scale: int = 1, seed: int = 0) -> Case:
    """The step; `scale` times as many prompts for the table over sizes."""
    rng = np.random.default_rng(seed)
    prompts, responses, advantages = [], [], []
    for _ in range(workload.prompts * scale):
        prompt = rng.integers(1, workload.vocab, PROMPT_TOKENS)
        rewards = np.concatenate([[1.0, 0.0], rng.integers(0, 2, RESPONSES - 2)])
        for reward in rewards:
            length = rng.lognormal(math.log(workload.median), 0.7)
            length = int(np.clip(length, 8, workload.max_response_tokens))
            prompts.append(prompt.astype(np.int32))
            responses.append(rng.integers(1, workload.vocab, length).astype(np.int32))
            advantages.append((reward - rewards.mean()) / (rewards.std() + 1e-6))
    return Case(prompts, responses, np.array(advantages, np.float32))


def padded(case: Case) -> dict[str, np.ndarray]:
    """Prompts padded left, responses right, as systems without packing take them."""
    longest = max(len(r) for r in case.responses)
    rows = len(case.responses)
    completion = np.zeros((rows, longest), np.int64)
    mask = np.zeros((rows, longest), np.int64)
    for i, response in enumerate(case.responses):
        completion[i, : len(response)] = response
        mask[i, : len(response)] = 1
    prompt = np.stack(case.prompts).astype(np.int64)
    return {
        "prompt_ids": prompt,
        "prompt_mask": np.ones_like(prompt),
        "completion_ids": completion,
        "completion_mask": mask,
        "advantages": case.advantages,
    }
