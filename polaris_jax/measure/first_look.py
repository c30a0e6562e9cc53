"""A few responses of a model to a few problems, before there is a run: for `polaris init`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polaris_jax.assemble import load_base
from polaris_jax.config import RunConfig
from polaris_jax.guide.choices import Sampled
from polaris_jax.measure.policy import open_policy
from polaris_jax.records import Problem
from polaris_jax.reward.extract import THINK_END
from polaris_jax.system.files import as_place
from polaris_jax.system.progress import Progress

PROBLEMS, RESPONSES = 8, 8
TEMPERATURE = 0.6


def sample_some(
    config: RunConfig,
    problems: Sequence[Problem],
    tokenizer: Any,
    *,
    budget: int,
    progress: Progress,
) -> Sampled:
    """What 64 responses show: 8 to each of 8 problems, evenly spread.

    Args:
        config: the config that is about to be written.
        problems: the problems to choose from.
        tokenizer: the model's tokenizer, which keeps the prompts that it has rendered.
        budget: longest response, in tokens.
        progress: gets lines and bars for a person.
    """
    step = max(1, len(problems) // PROBLEMS)
    some = list(problems[::step][:PROBLEMS])
    model, _ = load_base(config, as_place("."), progress)
    with (
        open_policy(config, progress, (model, tokenizer), max_response_tokens=budget) as policy,
        progress.phase("sample", len(some) * RESPONSES) as phase,
    ):
        graded = policy.solve(
            some,
            n=RESPONSES,
            temperature=TEMPERATURE,
            max_response_tokens=budget,
            seed_parts=(config.seed, "first look"),
            mode=config.reward.mode,
            on_progress=phase.sampling(0, len(some) * RESPONSES),
        )
        health = policy.judged(graded, some, reward=config.reward)
    ended = [
        (len(ids), text)
        for group_ids, group_texts, group_reasons in zip(
            graded.token_ids, graded.texts, graded.finish_reasons, strict=True
        )
        for ids, text, reason in zip(group_ids, group_texts, group_reasons, strict=True)
        if reason == "stop"
    ]
    return Sampled(
        responses=health.responses,
        correct=int(graded.correct_PR.sum()),
        ended=len(ended),
        with_tags=sum(THINK_END in text for _, text in ended),
        longest=max((length for length, _ in ended), default=0),
        budget=budget,
        lines=tuple(health.lines()),
    )
