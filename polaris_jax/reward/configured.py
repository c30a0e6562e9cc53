"""The grading workers that a config's section `reward` describes."""

from __future__ import annotations

from polaris_jax.config.sections import RewardSection
from polaris_jax.reward.grader import Grader


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
