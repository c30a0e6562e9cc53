"""A model with its tokenizer, grader and sampler, for the commands that measure one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from polaris_jax.assemble import Solver, open_solver
from polaris_jax.config import RunConfig
from polaris_jax.measure.beginnings import continued, grade_beginnings
from polaris_jax.measure.solve import judged, solve
from polaris_jax.measure.weights import Weights
from polaris_jax.models import Decoder, RopeScaling
from polaris_jax.records import Graded, Problem
from polaris_jax.rollout import Sampler
from polaris_jax.rollout.samplers import Samplers, with_dtype
from polaris_jax.sharding import split_devices
from polaris_jax.stages.health import Health
from polaris_jax.system.failures import at_run_time
from polaris_jax.system.progress import Progress


class Policy:
    """A model with its tokenizer, grader and sampler; made by `open_policy`."""

    def __init__(self, solver: Solver, sampler: Sampler) -> None:
        self._solver, self._sampler = solver, sampler

    def solve(self, problems: Sequence[Problem], **settings: Any) -> Graded:
        """`solve` with this policy's solver and sampler; `settings` are its other arguments."""
        return solve(self._solver, self._sampler, problems, **settings)

    def judged(self, graded: Graded, problems: Sequence[Problem], **settings: Any) -> Health:
        """`judged` with this policy's tokenizer; `settings` are its other arguments."""
        return judged(graded, problems, self._solver.tokenizer, **settings)

    def prefix_rewards(
        self, graded: Graded, problems: Sequence[Problem], budgets: Sequence[int]
    ) -> dict[tuple[int, int], dict[int, float]]:
        """Rewards of responses that are cut at each token budget.

        The beginnings are graded in mode "eval", whatever mode the responses were graded in. Each
        process grades a share; all return the same.

        Args:
            graded: responses to the problems, in the problems' order.
            problems: the problems.
            budgets: budgets in tokens.

        Returns:
            {(p, r): {budget: reward of the first `budget` tokens of response r to problem p}}. Only
            budgets below the response's length have an entry, and those where grading did not fail.
        """
        cut = [
            (p, r, budget)
            for p, group in enumerate(graded.token_ids)
            for r, token_ids in enumerate(group)
            for budget in budgets
            if budget < len(token_ids)
        ]
        rewards = grade_beginnings(
            self._solver, [(problems[p], graded.token_ids[p][r], budget) for p, r, budget in cut]
        )
        found: dict[tuple[int, int], dict[int, float]] = {}
        for (p, r, budget), reward in zip(cut, rewards, strict=True):
            if reward is not None:
                found.setdefault((p, r), {})[budget] = reward
        return found

    def continued(
        self, responses: Sequence[tuple[Problem, int, Sequence[int]]], **settings: Any
    ) -> list[dict[str, Any]]:
        """`continued` with this policy's solver and sampler; `settings` are its other arguments."""
        return continued(self._solver, self._sampler, responses, **settings)


@contextlib.contextmanager
def open_policy(
    config: RunConfig,
    progress: Progress,
    weights: tuple[Decoder, Any],
    *,
    max_response_tokens: int,
    rope_scaling: RopeScaling | None = None,
    samplers: Samplers | None = None,
) -> Iterator[Policy]:
    """A context manager that opens a policy with these weights, and closes its workers at the end.

    Args:
        config: the run's config.
        progress: prints a line about the sampler's kernels.
        weights: (model, tokenizer).
        max_response_tokens: largest budget that the policy's `solve` will be called with.
        rope_scaling: rotary scaling to sample under; None: the model's own.
        samplers: makes the sampler, or takes that of the last policy with these weights in it.
            The sampler is released at the end, so that the next policy has its memory. None: made
            here.
    """
    model, tokenizer = weights
    if rope_scaling is not None:
        model = model.with_rope_scaling(rope_scaling)
    if samplers is None:
        samplers = open_samplers(with_dtype(config, model.config, _devices(config)), progress)
    with open_solver(config, tokenizer, samplers, model=model.config) as solver:
        sampler = samplers.reused(model, max_response_tokens=max_response_tokens, say_kernels=True)
        with at_run_time(lambda: "sampling"):
            yield Policy(solver, sampler)
        sampler.release()


def open_samplers(config: RunConfig, progress: Progress) -> Samplers:
    """What makes the samplers of a measurement, on all devices of this process.

    Args:
        config: the config; its dtype is decided.
        progress: prints a line about their kernels.
    """
    return Samplers(config, _devices(config), progress)


def with_decided_dtype(
    config: RunConfig, weights: Weights, say: Callable[[str], None] = lambda line: None
) -> RunConfig:
    """`rollout.samplers.with_dtype` for the devices that `open_policy` samples on.

    Args:
        config: the config.
        weights: what is sampled from. They are looked at only if the config leaves it open.
        say: prints the choice.
    """
    if config.model.dtype != "auto":
        return config
    return with_dtype(config, weights.architecture(config), _devices(config), say)


def _devices(config: RunConfig) -> list[Any]:
    return split_devices(0, config.rollout.processes)[1]
