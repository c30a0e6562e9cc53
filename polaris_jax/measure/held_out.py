"""The held-out score that a run takes of itself while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from polaris_jax.assemble import grade, make_sampler, prompt_batch, sample
from polaris_jax.config import RunConfig
from polaris_jax.evaluate.estimators import avg_at_k
from polaris_jax.models import ModelConfig, Qwen
from polaris_jax.records import Problem
from polaris_jax.reward import Grader
from polaris_jax.rollout import Sampler


class HeldOut:
    """Scores weights on fixed problems with fixed noise; its sampler lasts as long as it can."""

    def __init__(
        self,
        problems: Sequence[Problem],
        config: RunConfig,
        *,
        tokenizer: Any,
        grader: Grader,
        devices: Sequence[Any],
    ) -> None:
        self._config, self._tokenizer, self._grader = config, tokenizer, grader
        self._devices = devices
        self._prompts = prompt_batch(
            problems, tokenizer=tokenizer, prompt_suffix=config.data.prompt_suffix
        )
        self._sampler: tuple[ModelConfig, Sampler] | None = None

    def __len__(self) -> int:
        return len(self._prompts)

    def score(self, model: Qwen, *, temperature: float, should_abort: Callable[[], bool]) -> float:
        """avg@n of `model` at `temperature` and otherwise `config.evaluate`, in [0, 1].

        Raises:
            RolloutAborted: `should_abort` said so in some process.
        """
        section = self._config.evaluate
        budget = section.max_response_tokens or self._config.stages[-1].max_response_tokens
        if self._sampler is not None and self._sampler[0] == model.config:
            self._sampler[1].update_weights(model)
        else:  # the first time, and where a stage has changed the rotary scaling
            sampler = make_sampler(
                model, self._config, max_response_tokens=budget, devices=self._devices
            )
            self._sampler = model.config, sampler
        rollouts = sample(
            self._sampler[1],
            self._prompts,
            tokenizer=self._tokenizer,
            n=section.n,
            temperature=temperature,
            max_response_tokens=budget,
            seed_parts=(section.seed, "evaluate"),
            top_k=section.top_k,
            top_p=section.top_p,
            should_abort=should_abort,
        )
        self._sampler[1].release()  # the next update has use for the room
        return avg_at_k(grade(self._grader, rollouts, mode="eval").reward_PR).value
