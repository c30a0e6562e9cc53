"""The grading workers that a config's section `reward` describes, and what a model must have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from polaris_jax.config.data import DataSection
from polaris_jax.config.sections import RewardSection
from polaris_jax.data.prompts import read_template
from polaris_jax.records import Problem
from polaris_jax.reward.extract import THINK_END
from polaris_jax.reward.golds import gold_kinds
from polaris_jax.reward.grader import Grader
from polaris_jax.system.text import printable

LOOKED_AT, MOST = 500, 0.5  # golds that a warning looks at, and the share that is worth one


def open_grader(section: RewardSection) -> Grader:
    """The grading workers of `config.reward`. Close them at the end.

    Raises:
        ConfigError: a function of `reward.function` cannot be used.
    """
    return Grader(
        workers=section.workers,
        timeout_s=section.timeout_s,
        memory_limit_bytes=section.memory_limit_bytes,
        function=section.function,
    )


def check_reward(section: RewardSection) -> None:
    """Raises ConfigError if a function of `reward.function` cannot be used: a worker tries.

    Raises:
        ConfigError: a function is missing, not callable, or importing it fails.
    """
    if section.function:
        open_grader(section).close()


def has_tags(tokenizer: Any) -> bool:
    """True if a tokenizer's vocabulary or its chat template has `</think>`."""
    template = getattr(tokenizer, "chat_template", None)
    texts = template.values() if isinstance(template, dict) else [template or ""]
    return THINK_END in tokenizer.get_vocab() or any(THINK_END in str(text) for text in texts)


def warn_of_reward(
    section: RewardSection,
    data: DataSection,
    tokenizer: Any,
    problems: Sequence[Problem],
    say: Callable[[str], None],
) -> None:
    """Warns, before anything is sampled, of what keeps the math grader from rewarding answers.

    That is a model without the `</think>` that reward.mode=train waits for, golds that cannot be
    read, and golds in words, which few answers equal.

    Args:
        section: `config.reward`.
        data: `config.data`, whose texts may ask for the tag.
        tokenizer: the model's tokenizer.
        problems: the problems; up to 500 golds are looked at.
        say: gets the warnings.
    """
    if section.function:
        return
    asked = (data.system_prompt, data.prompt_suffix, data.response_prefill)
    texts = [*asked, read_template(data.chat_template) or ""]
    told = any("think>" in text for text in texts)
    if section.mode == "train" and not told and not has_tags(tokenizer):
        say(
            f"warning: reward.mode=train reads the answer after {THINK_END}, and the model has no "
            "such tag in its vocabulary or chat template; set reward.mode=eval for a model without "
            "thinking tags, or every reward may be 0"
        )
    some = problems[:: -(-len(problems) // LOOKED_AT) or 1]
    kinds = [gold_kinds(problem.answer) for problem in some]
    unread = [problem for problem, kind in zip(some, kinds, strict=True) if not kind]
    if some and len(unread) >= MOST * len(some):
        say(
            f"warning: the math grader cannot read {len(unread) / len(some):.0%} of the golds, "
            f"such as {printable(str(unread[0].answer)[:40])!r}, and no response would equal "
            "them; give the final answer in the answer column, or set reward.function"
        )
    words = [problem for problem, kind in zip(some, kinds, strict=True) if kind == {"words"}]
    if some and len(words) >= MOST * len(some):
        say(
            f"warning: {len(words) / len(some):.0%} of the golds are words, such as "
            f"{printable(str(words[0].answer)[:40])!r}, and the math grader compares words letter "
            "for letter; ask for the exact words in data.prompt_suffix, or set reward.function"
        )
