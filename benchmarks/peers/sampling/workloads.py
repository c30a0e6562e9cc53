"""What `benchmarks/sampler.py` asks of every side: prompts and forced response lengths.

A workload's lengths are one draw of a long-tailed distribution; every round deals them out anew, to
new prompts. So all rounds have the same useful tokens, and no cache of prompts helps across rounds.
"""

from __future__ import annotations

import dataclasses
import math
import random


@dataclasses.dataclass(frozen=True)
class Request:
    """One response to sample.

    Attributes:
        prompt: token ids.
        tokens: response tokens, exactly.
        seed: seed of this request, for sides that draw for each request on its own.
    """

    prompt: list[int]
    tokens: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Workload:
    """Prompts x samples with lognormal response lengths.

    Attributes:
        name: name in the flag and in the tables.
        model: a name of `ours.MODELS`.
        prompts: different prompts of a round.
        samples: requests with the same prompt; each is a request of its own.
        prompt_tokens: least and most tokens of a prompt, uniform, the shared prefix not counted.
        median: median of the response lengths, in tokens.
        sigma: standard deviation of their logarithm.
        response_tokens: least and most response tokens.
        shared_prefix: tokens that all prompts of a round begin with.
    """

    name: str
    model: str
    prompts: int
    samples: int
    prompt_tokens: tuple[int, int]
    median: float
    sigma: float
    response_tokens: tuple[int, int]
    shared_prefix: int = 0

    @property
    def only_ours(self) -> bool:
        """True if the workload compares our sampler with itself."""
        return self.name in ("S3", "S4")

    @property
    def num_requests(self) -> int:
        """Requests of a round."""
        return self.prompts * self.samples

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest possible prompt."""
        return self.shared_prefix + self.prompt_tokens[1]

    @property
    def max_len(self) -> int:
        """Prompt and response tokens of the longest possible request."""
        return self.longest_prompt + self.response_tokens[1]


WORKLOADS = {
    w.name: w
    for w in (
        Workload("S1", "micro", 16, 8, (64, 192), 80, 0.8, (8, 512)),
        Workload("S2", "smollm2", 8, 4, (64, 160), 48, 0.7, (8, 256)),
        Workload("S3", "micro", 32, 1, (16, 48), 32, 0.6, (8, 128), shared_prefix=512),
        Workload("S4", "micro", 32, 8, (64, 192), 80, 0.8, (8, 512)),
        Workload("S5", "vocabulary", 8, 4, (64, 160), 48, 0.7, (8, 256)),
        Workload("S6", "micro", 8, 4, (64, 192), 400, 0.8, (32, 1792)),
    )
}


def shrunk(workload: Workload) -> Workload:
    """A few short requests of the same kind, for a smoke test."""
    return dataclasses.replace(
        workload,
        prompts=2,
        samples=2,
        prompt_tokens=(4, 12),
        median=8,
        response_tokens=(2, 16),
        shared_prefix=min(workload.shared_prefix, 32),
    )


def lengths(workload: Workload) -> list[int]:
    """Response tokens of the workload's requests, the same in every round."""
    rng = random.Random(f"{workload.name} lengths")
    least, most = workload.response_tokens
    draws = (
        rng.lognormvariate(math.log(workload.median), workload.sigma)
        for _ in range(workload.num_requests)
    )
    return [min(max(round(x), least), most) for x in draws]


def requests(workload: Workload, round_number: int, vocab: int) -> list[Request]:
    """The requests of a round: new prompts, the workload's lengths in another order.

    Args:
        workload: what to draw.
        round_number: any integer; equal ones give equal requests.
        vocab: token ids are below it, and above 0, with which some sides pad.
    """
    rng = random.Random(f"{workload.name} round {round_number}")
    dealt = lengths(workload)
    rng.shuffle(dealt)
    prefix = [rng.randrange(1, vocab) for _ in range(workload.shared_prefix)]
    prompts = [
        prefix + [rng.randrange(1, vocab) for _ in range(rng.randint(*workload.prompt_tokens))]
        for _ in range(workload.prompts)
    ]
    return [
        Request(prompts[i // workload.samples], dealt[i], rng.randrange(2**31))
        for i in range(workload.num_requests)
    ]
