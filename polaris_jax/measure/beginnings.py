"""Beginnings of stored responses, by their token ids: graded as they are, or continued."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from polaris_jax.assemble import Solver
from polaris_jax.evaluate.scoring import FAILED
from polaris_jax.measure.responses import ids_text
from polaris_jax.measure.solve import as_columns, drawn_once
from polaris_jax.records import Group, Problem
from polaris_jax.reward import RewardInput
from polaris_jax.reward.grade_ahead import reward_input
from polaris_jax.rollout import Sampler, SamplingParams
from polaris_jax.rollout.groups import begin, sample_groups
from polaris_jax.system import processes


def grade_beginnings(
    solver: Solver, cut: Sequence[tuple[Problem, Sequence[int], int]]
) -> list[float | None]:
    """Rewards of the beginnings of responses, graded in mode "eval".

    Each process grades a share; all return the same.

    Args:
        solver: tokenizer and grader.
        cut: (problem, token ids of a response, budget in tokens), the same in every process.

    Returns:
        The reward of the first `budget` tokens of each, rounded to float32 as in `Graded`; None
        where grading failed.
    """
    mine = cut[jax.process_index() :: jax.process_count()]
    drawn = drawn_by_id([problem for problem, _, _ in mine], solver)
    grades = solver.grader.grade_inputs(
        [
            RewardInput(
                solver.tokenizer.decode(list(token_ids[:budget]), skip_special_tokens=True),
                prompt_text=drawn[problem.id].prompt_text,
                answer=drawn[problem.id].gold,
                problem_id=problem.id,
                extra=drawn[problem.id].extra,
                finish_reason="length",
                num_tokens=budget,
                mode="eval",
            )
            for problem, token_ids, budget in mine
        ]
    )
    shares = processes.gather_objects(
        [None if grade.failed else float(np.float32(grade.reward)) for grade in grades]
    )
    rewards: list[float | None] = [None] * len(cut)
    for process, share in enumerate(shares):
        rewards[process :: len(shares)] = share
    return rewards


def drawn_by_id(problems: Sequence[Problem], solver: Solver) -> dict[str, Group]:
    """A group without responses for each problem, by problem id; a repeat is rendered once."""
    distinct = list({problem.id: problem for problem in problems}.values())
    drawn = drawn_once(distinct, solver.prompt_format, tokenizer=solver.tokenizer)
    return {group.problem_id: group for group in drawn}


def continued(
    solver: Solver,
    sampler: Sampler,
    responses: Sequence[tuple[Problem, int, Sequence[int]]],
    *,
    texts: Sequence[str],
    max_tokens: int,
    seed_parts: Sequence[Any],
    **sampling: Any,
) -> list[dict[str, Any]]:
    """Responses that are continued behind a text, and graded in mode "eval".

    Args:
        solver: tokenizer and grader.
        sampler: this process's sampler.
        responses: (problem, sample, token ids), the same in every process.
        texts: what stands between each response and its continuation.
        max_tokens: largest length of a continuation in tokens.
        seed_parts: values that are hashed with problem and sample into each sampling seed.
        sampling: temperature, top_k and top_p.

    Returns:
        For each response its `reward` (rounded to float32), its `answer`, whether grading failed,
        `tokens` of response, text and continuation, and `text` and `token_ids` of the latter two.
    """
    tokenizer = solver.tokenizer
    drawn = drawn_by_id([problem for problem, _, _ in responses], solver)
    between = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    groups = begin(
        [
            dataclasses.replace(
                drawn[problem.id],
                prompt=(*drawn[problem.id].prompt, *token_ids, *ids),
                draw=sample,  # gives each sample a seed of its own
            )
            for (problem, sample, token_ids), ids in zip(responses, between, strict=True)
        ],
        n=1,
        version=0,
        seed_parts=seed_parts,
    )
    params = SamplingParams(
        n=1, max_tokens=max_tokens, stop_token_ids=solver.stop_token_ids, **sampling
    )
    groups = sample_groups(sampler, groups, params, tokenizer=tokenizer, wanted=len(groups))
    found = []
    for (_, _, token_ids), text, ids, group in zip(responses, texts, between, groups, strict=True):
        more = (*ids, *group.responses[0].token_ids)
        found.append(
            {
                "tokens": len(token_ids) + len(more),
                "text": f"{text}{group.texts[0]}",
                "token_ids": ids_text(more),
            }
        )
    mine = range(jax.process_index(), len(groups), jax.process_count())
    inputs = [
        dataclasses.replace(
            reward_input(
                groups[i],
                0,
                tokenizer.decode(list(responses[i][2]), skip_special_tokens=True)
                + found[i]["text"],
                "eval",
            ),
            num_tokens=found[i]["tokens"],
        )
        for i in mine
    ]
    grades = [as_columns(grade) for grade in solver.grader.grade_inputs(inputs)]
    shares = processes.gather_objects(grades)
    for process, share in enumerate(shares):
        for i, (reward, _, answer, _, failed) in zip(
            range(process, len(groups), len(shares)), share, strict=True
        ):
            found[i] |= {"reward": float(np.float32(reward)), "answer": answer, FAILED: failed}
    return found
