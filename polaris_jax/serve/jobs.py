"""What the worker is asked for, a job, and what it reports of it, events."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from polaris_jax.rollout import SamplingParams
from polaris_jax.rollout.scores import Scores


@dataclasses.dataclass(eq=False)
class Job:
    """Prompts to be sampled with one set of sampling settings.

    Attributes:
        prompts: token ids of each prompt.
        params: sampling settings; None scores the prompts and samples nothing.
        top: number of likeliest tokens that scores name.
        scores: True if ended responses come with the scores of prompt and response.
        temperature: temperature of the scores; 0 counts as 1, as in sampling.
        inbox: where the receiver of the events keeps its own queue.
    """

    prompts: Sequence[Sequence[int]]
    params: SamplingParams | None
    top: int = 0
    scores: bool = False
    temperature: float = 1.0
    inbox: Any = None

    @property
    def responses(self) -> int:
        """Number of responses that the job asks for."""
        return len(self.prompts) * (1 if self.params is None else self.params.n)


@dataclasses.dataclass(frozen=True)
class Accepted:
    """The sampler has taken the job."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """The scores of a prompt of a job that samples nothing."""

    prompt: int
    scores: Scores


@dataclasses.dataclass(frozen=True)
class Tokens:
    """New tokens of one response.

    Attributes:
        prompt: index of the prompt in the job.
        sample: index of the response among those of the prompt.
        token_ids: the new tokens; a stop token is the last of them.
        logprobs: their log-probs in nats.
        finish_reason: "stop" or "length" with the last tokens, else None.
        scores: scores of prompt and response, with the last tokens, if the job asks for them.
    """

    prompt: int
    sample: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str | None = None
    scores: Scores | None = None


@dataclasses.dataclass(frozen=True)
class Finished:
    """All responses of the job have ended."""


@dataclasses.dataclass(frozen=True)
class Failed:
    """The job ends without its responses.

    Attributes:
        text: what went wrong, in one line.
        refused: True if the request itself cannot be served.
    """

    text: str
    refused: bool = False


Event = Accepted | Scored | Tokens | Finished | Failed
