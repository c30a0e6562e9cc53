"""A policy that only samples: model, sampler and grader of calibrate, probe and evaluate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
from etils import epath

from polaris_jax.assemble import grade, make_grader, make_sampler, prompt_batch, sample
from polaris_jax.base_model import load_base
from polaris_jax.config import RunConfig
from polaris_jax.models import Qwen, RopeScaling
from polaris_jax.records import Graded, Problem
from polaris_jax.reward import Grader
from polaris_jax.rollout import Sampler
from polaris_jax.system import processes
from polaris_jax.system.failures import at_run_time
from polaris_jax.system.progress import Progress


class Policy:
    """Samples and grades problems under fixed settings; made by `open_policy`."""

    def __init__(self, config: RunConfig, sampler: Sampler, tokenizer: Any, grader: Grader) -> None:
        self._config, self._sampler = config, sampler
        self._tokenizer, self._grader = tokenizer, grader

    def solve(
        self,
        problems: Sequence[Problem],
        *,
        n: int,
        temperature: float,
        max_response_tokens: int,
        seed_parts: Sequence[Any],
        mode: Literal["train", "eval"],
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Graded:
        """n graded responses to each problem; arguments as in `session.sample`."""
        rollouts = sample(
            self._sampler,
            prompt_batch(
                problems,
                tokenizer=self._tokenizer,
                prompt_suffix=self._config.data.prompt_suffix,
            ),
            tokenizer=self._tokenizer,
            n=n,
            temperature=temperature,
            max_response_tokens=max_response_tokens,
            seed_parts=seed_parts,
            top_k=top_k,
            top_p=top_p,
        )
        return grade(self._grader, rollouts, mode=mode)

    def prefix_rewards(
        self, graded: Graded, budgets: Sequence[int]
    ) -> dict[tuple[int, int], dict[int, float]]:
        """(p, r) -> budget -> reward of the response's first so many tokens, where that cuts it.

        Graded as evaluation does (the last box anywhere), each process a share.
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
            self._tokenizer.decode(graded.token_ids[p][r][:budget], skip_special_tokens=True)
            for p, r, budget in mine
        ]
        golds = [graded.golds[p] for p, _, _ in mine]
        rewards = self._grader.score(texts, golds, mode="eval").tolist()
        shares = processes.gather_objects(rewards)
        found: dict[tuple[int, int], dict[int, float]] = {}
        for process, share in enumerate(shares):
            for (p, r, budget), reward in zip(cut[process :: len(shares)], share, strict=True):
                found.setdefault((p, r), {})[budget] = reward
        return found


@contextlib.contextmanager
def open_policy(
    config: RunConfig,
    workdir: epath.Path,
    progress: Progress,
    *,
    max_response_tokens: int,
    weights: tuple[Qwen, Any] | None = None,
    rope_scaling: RopeScaling | None = None,
) -> Iterator[Policy]:
    """A policy over the base model, or over `weights` = (model, tokenizer).

    Args:
        config: the run.
        workdir: where the warm start lies.
        progress: for the warm start's lines and the sampler's kernels.
        max_response_tokens: longest budget that will be asked for.
        weights: other weights than the base model's.
        rope_scaling: rotary scaling to sample under; None keeps the model's own.
    """
    model, tokenizer = weights or load_base(config, workdir, progress)
    if rope_scaling is not None:
        model = model.with_rope_scaling(rope_scaling)
    sampler = make_sampler(model, config, max_response_tokens=max_response_tokens)
    progress.line(f"decode kernels: {sampler.kernels}")
    with make_grader(config) as grader, at_run_time(lambda: "sampling"):
        yield Policy(config, sampler, tokenizer, grader)
