"""A policy that only samples: model, sampler and grader of calibrate, probe and evaluate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from polaris_jax.assemble import Solver, open_solver
from polaris_jax.config import RunConfig
from polaris_jax.measure.solve import solve
from polaris_jax.models import Qwen, RopeScaling
from polaris_jax.records import Graded, Problem
from polaris_jax.rollout import Sampler
from polaris_jax.rollout.samplers import Samplers
from polaris_jax.sharding import split_devices
from polaris_jax.system import processes
from polaris_jax.system.failures import at_run_time
from polaris_jax.system.progress import Progress


class Policy:
    """Samples and grades problems under fixed settings; made by `open_policy`."""

    def __init__(self, solver: Solver, sampler: Sampler) -> None:
        self._solver, self._sampler = solver, sampler

    def solve(self, problems: Sequence[Problem], **settings: Any) -> Graded:
        """Graded responses to each problem; settings as in `measure.solve.solve`."""
        return solve(self._solver, self._sampler, problems, **settings)

    def prefix_rewards(
        self, graded: Graded, budgets: Sequence[int]
    ) -> dict[tuple[int, int], dict[int, float]]:
        """(p, r) -> budget -> reward of the response's first `budget` tokens, if that cuts it.

        Graded in mode "eval" (the last box anywhere), each process a share.
        """
        cut = [
            (p, r, budget)
            for p, group in enumerate(graded.token_ids)
            for r, token_ids in enumerate(group)
            for budget in budgets
            if budget < len(token_ids)
        ]
        mine = cut[jax.process_index() :: jax.process_count()]
        texts = [
            self._solver.tokenizer.decode(graded.token_ids[p][r][:budget], skip_special_tokens=True)
            for p, r, budget in mine
        ]
        golds = [graded.golds[p] for p, _, _ in mine]
        rewards = self._solver.grader.score(texts, golds, mode="eval").tolist()
        shares = processes.gather_objects(rewards)
        found: dict[tuple[int, int], dict[int, float]] = {}
        for process, share in enumerate(shares):
            for (p, r, budget), reward in zip(cut[process :: len(shares)], share, strict=True):
                found.setdefault((p, r), {})[budget] = reward
        return found


@contextlib.contextmanager
def open_policy(
    config: RunConfig,
    progress: Progress,
    weights: tuple[Qwen, Any],
    *,
    max_response_tokens: int,
    rope_scaling: RopeScaling | None = None,
) -> Iterator[Policy]:
    """A policy that samples with these weights.

    Args:
        config: the run's config.
        progress: gets a line about the sampler's kernels.
        weights: (model, tokenizer).
        max_response_tokens: longest budget that will be asked for.
        rope_scaling: rotary scaling to sample under; None keeps the model's own.
    """
    model, tokenizer = weights
    end_ids = model.config.end_ids
    if rope_scaling is not None:
        model = model.with_rope_scaling(rope_scaling)
    samplers = Samplers(config, split_devices(0, config.rollout.processes)[1], progress)
    with open_solver(config, tokenizer, samplers, end_ids=end_ids) as solver:
        sampler = solver.samplers.make(model, max_response_tokens=max_response_tokens)
        with at_run_time(lambda: "sampling"):
            yield Policy(solver, sampler)
