"""What a long command is about to sample: said before it starts and after its first batch.

A command of less than an hour says nothing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from polaris_jax.config import RunConfig
from polaris_jax.records import NO_STAGE, StageState
from polaris_jax.run.standing import PHASES
from polaris_jax.system.progress import Progress

LONG_S = 3600.0
# Where no speed is known, tokens that a device may well need an hour for: 1,000 a second.
LONG_TOKENS = 3_600_000


@dataclasses.dataclass(frozen=True)
class Batches:
    """Responses that are sampled in batches of one size.

    Attributes:
        responses: number of responses.
        batch: responses of a batch.
        n: responses to each prompt.
        budget: largest length of a response in tokens.
        updates: True if each batch also trains.
    """

    responses: int
    batch: int
    n: int
    budget: int
    updates: bool = False

    @property
    def most_tokens(self) -> int:
        """Response tokens if every response reaches the budget."""
        return self.responses * self.budget


@dataclasses.dataclass(frozen=True)
class Forecast:
    """How long batches take, as far as that is known before the first of them.

    Attributes:
        devices: what samples, for people, such as "32 h100".
        count: number of devices.
        seconds: estimated seconds of one of the given batches; None if the speed is not known.
        lengths: the lengths of responses that `seconds` assumes, as a clause for people.
    """

    devices: str
    count: int
    seconds: Callable[[Batches], float] | None = None
    lengths: str = ""


UNKNOWN = Forecast("this machine", 1)


class Workload:
    """What a command samples, and how long that takes. Prints if it is more than an hour.

    Args:
        name: the command, for people.
        work: what it will sample.
        forecast: what is known of the machine's speed.
        progress: gets the lines.
        always: print what will be sampled, however short it is.
        said: what will be sampled has been printed already.
    """

    def __init__(
        self,
        name: str,
        work: list[Batches],
        *,
        forecast: Forecast,
        progress: Progress,
        always: bool = False,
        said: bool = False,
    ) -> None:
        self._name, self._work, self._progress = name, work, progress
        self._said, self._measured = said, False
        self._began_s = time.monotonic()
        if not said and (text := before_text(name, work, forecast, always=always)):
            self._said = True
            progress.line(text)

    def starts(self) -> None:
        """Starts the clock of the first batch."""
        self._began_s = time.monotonic()

    def did(self, *, responses: int, tokens: int) -> None:
        """Says what is left, if this was the first batch.

        Args:
            responses: responses of the batch.
            tokens: response tokens of the batch.
        """
        if self._measured:
            return
        self._measured = True
        seconds = time.monotonic() - self._began_s
        left = sum(part.responses for part in self._work) - responses
        if left > 0 and (self._said or seconds * left / responses > LONG_S):
            self._progress.line(
                after_text(self._name, responses=responses, tokens=tokens, seconds=seconds)
                + left_text(left, tokens * left / responses, seconds * left / responses)
            )


def before_text(name: str, work: list[Batches], forecast: Forecast, *, always: bool = False) -> str:
    """What a command will sample, in a line; "" if it takes less than an hour.

    If no speed is known, it says so, of work that may take an hour (`LONG_TOKENS` a device).

    Args:
        name: the command.
        work: what it will sample.
        forecast: what is known of the machine's speed.
        always: True: the line also for less than an hour.
    """
    responses = sum(part.responses for part in work)
    tokens = sum(part.most_tokens for part in work)
    if not responses:
        return ""
    what = f"{name} will sample {responses:,} responses, {short_tokens(tokens)} tokens at most"
    if forecast.seconds is None:
        if tokens <= LONG_TOKENS * forecast.count and not always:
            return ""
        return (
            f"{what}; how many hours is unknown, as no speed is known for {forecast.devices}: the "
            "first batch will tell"
        )
    seconds = sum(forecast.seconds(part) * part.responses / part.batch for part in work)
    if seconds <= LONG_S and not always:
        return ""
    return (
        f"{what}; about {hours(seconds)} by the published speed of {forecast.devices}, if "
        f"{forecast.lengths} (an estimate; the first batch will tell)"
    )


def after_text(name: str, *, responses: int, tokens: int, seconds: float) -> str:
    """What the first batch took, as the beginning of a line."""
    return (
        f"{name}: the first {responses:,} responses took {seconds:,.0f} s, compilation included "
        f"({tokens:,} tokens, {tokens / max(seconds, 1e-9):,.0f} a second)"
    )


def left_text(responses: int, tokens: float, seconds: float) -> str:
    """What is left at the first batch's rate, as the end of a line."""
    return (
        f"; at this rate {responses:,} responses, {short_tokens(tokens)} tokens and "
        f"{hours(seconds)} are left"
    )


def hours(seconds: float) -> str:
    """`12 min`, `30.5 h`, and days from two days on: `110.8 h (4.6 days)`."""
    if seconds < LONG_S:
        return f"{seconds / 60:.0f} min"
    days = f" ({seconds / 86400:.1f} days)" if seconds >= 2 * 86400 else ""
    return f"{seconds / 3600:,.1f} h{days}"


def short_tokens(tokens: float) -> str:
    """A number of tokens with three digits: `16.9G`, `4.1M`, `820,000`."""
    for limit, suffix in ((1e9, "G"), (1e6, "M")):
        if tokens >= limit:
            return f"{tokens / limit:.3g}{suffix}"
    return f"{tokens:,.0f}"


def training_left(config: RunConfig, stage: StageState, next_stage: int | None) -> list[Batches]:
    """The rollouts of the steps that a run has left; held-out scores and resets are left out.

    Args:
        config: the run's config.
        stage: where the run stands.
        next_stage: the stage to enter before the next step; None within a stage.
    """
    rollout, work = config.rollout, []
    batch = rollout.prompts_per_step * rollout.responses_per_prompt
    first = max(stage.stage, 0) if next_stage is None else next_stage
    for index, section in enumerate(config.stages[first:], first):
        here = next_stage is None and index == stage.stage != NO_STAGE
        steps = max(0, section.steps - (stage.steps_done if here else 0))
        n, budget = rollout.responses_per_prompt, section.max_response_tokens
        work.append(Batches(steps * batch, batch, n, budget, updates=True))
    return [part for part in work if part.responses]


def first_step_text(
    config: RunConfig,
    stage: StageState,
    next_stage: int | None,
    timing: Mapping[str, Any],
    *,
    samplers: int = 1,
) -> str:
    """What a start's first step took and what is left at its rate; "" if less than an hour is.

    Args:
        config: the run's config.
        stage: where the run stands after the step.
        next_stage: the stage to enter before the next step; None within a stage.
        timing: the step's line of timing.jsonl, of the first process.
        samplers: number of samplers, which share the responses.
    """
    left = training_left(config, stage, next_stage)
    responses = sum(part.responses for part in left)
    phases = [name for name in PHASES if name != "evaluate"]  # not every step is scored
    seconds = sum(timing.get(f"time/{name}_s") or 0.0 for name in phases)
    rate = timing.get("throughput/rollout_tokens_per_s") or 0.0  # of the first sampler
    tokens = round(rate * (timing.get("time/rollout_s") or 0.0) * samplers)
    batch = config.rollout.prompts_per_step * config.rollout.responses_per_prompt
    left_s = seconds * responses / batch
    if left_s <= LONG_S:
        return ""
    return after_text("train", responses=batch, tokens=tokens, seconds=seconds) + left_text(
        responses, tokens * responses / batch, left_s
    )
