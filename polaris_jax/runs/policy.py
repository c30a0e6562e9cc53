"""A policy that only samples: model, sampler and grader of calibrate, probe and evaluate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from etils import epath

from polaris_jax.base_model import load_base
from polaris_jax.config import RunConfig
from polaris_jax.models import Qwen, RopeScaling
from polaris_jax.progress import Progress
from polaris_jax.records import Graded, Problem
from polaris_jax.reward import Grader
from polaris_jax.rollout import Sampler
from polaris_jax.session import grade, make_grader, make_sampler, prompt_batch, sample


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
    with make_grader(config) as grader:
        yield Policy(config, sampler, tokenizer, grader)
