"""Samples and grades problems, all processes together.

A training run calls `solve` for held-out scores and for the probe set. The commands calibrate,
probe and evaluate open a `Policy`, which has a sampler and a grader of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from polaris_jax.assemble import Solver
from polaris_jax.config import RewardSection
from polaris_jax.data.prompts import PromptFormat
from polaris_jax.records import Graded, Group, Problem
from polaris_jax.reward import Grader
from polaris_jax.reward.extract import Mode
from polaris_jax.reward.grade_ahead import GradeAhead, reward_input
from polaris_jax.reward.grader import Grade
from polaris_jax.rollout import Sampler, SamplingParams
from polaris_jax.rollout.groups import begin, sample_groups
from polaris_jax.stages.health import Health, judge, turn_tokens
from polaris_jax.system import processes

MAX_ANSWER_CHARS = 1000  # of an extracted answer in `Graded.answers`


def solve(
    solver: Solver,
    sampler: Sampler,
    problems: Sequence[Problem],
    *,
    n: int,
    temperature: float,
    max_response_tokens: int,
    seed_parts: Sequence[Any],
    mode: Mode,
    top_k: int = 0,
    top_p: float = 1.0,
    should_abort: Callable[[], bool] | None = None,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> Graded:
    """A record with n graded responses to each problem, in the problems' order.

    Args:
        solver: tokenizer and grader.
        sampler: this process's sampler; it may span several processes.
        problems: the problems, the same in every process.
        n: number of responses to each problem.
        temperature: sampling temperature; 0 is greedy.
        max_response_tokens: largest length of a response in tokens, stop token included.
        seed_parts: values that are hashed with the problem's id into each prompt's sampling seed.
        mode: how answers are extracted; see `reward.extract.response_answer`.
        top_k: number of likeliest tokens that are sampled from; 0: all.
        top_p: share of probability that is sampled from, in (0, 1]; 1: all tokens.
        should_abort: called between device calls; sampling is aborted if it returns True.
        on_progress: called with (responses done, responses in all, tokens), of this process.

    Raises:
        RolloutAborted: `should_abort` returned True in a process.
    """
    groups = sample_groups(
        sampler,
        begin(
            drawn_once(problems, solver.prompt_format, tokenizer=solver.tokenizer),
            n=n,
            version=0,
            seed_parts=seed_parts,
        ),
        SamplingParams(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            n=n,
            max_tokens=max_response_tokens,
            stop_token_ids=solver.stop_token_ids,
        ),
        tokenizer=solver.tokenizer,
        wanted=len(problems),
        should_abort=should_abort,
        on_progress=on_progress,
    )
    return grade_groups(
        solver.grader, dict(enumerate(groups)), mode=mode, correct_at=solver.correct_at
    )


def drawn_once(
    problems: Sequence[Problem], prompt_format: PromptFormat, *, tokenizer: Any
) -> list[Group]:
    """A group without responses for each problem, with its prompt rendered and encoded.

    In training the loader makes these groups. Here there is no loader, so draw and epoch are 0.

    Args:
        problems: the problems.
        prompt_format: how a problem becomes a prompt.
        tokenizer: applies the chat template and encodes.
    """
    rendered = prompt_format.render(tokenizer, problems)
    return [
        Group(
            problem.id,
            ids,
            prompt_format.last_turn(text),
            problem.answer,
            draw=0,
            epoch=0,
            extra=problem.extra,
            opening=prompt_format.opening(text, problem.problem),
        )
        for problem, (text, ids) in zip(problems, rendered, strict=True)
    ]


def grade_groups(
    grader: Grader,
    groups: Mapping[int, Group],
    *,
    mode: Mode,
    correct_at: float = 1.0,
    ahead: GradeAhead | None = None,
) -> Graded:
    """The groups' responses with their rewards; each process grades its own share.

    Args:
        grader: the grading workers of this process.
        groups: complete groups by number, the same in every process. The number decides which
            process grades what no process has graded ahead.
        mode: how answers are extracted; see `reward.extract.response_answer`.
        correct_at: reward from which a response counts as correct.
        ahead: background grading, which has been given some of the responses; their rewards are
            taken from it. None, in all processes alike: all responses are graded here.

    Returns:
        All groups with the rewards of all processes, in the order of `groups`.
    """
    members, width = list(groups.values()), len(next(iter(groups.values())).texts)
    place = {number: p for p, number in enumerate(groups)}
    known = {} if ahead is None else ahead.graded()
    known = {key: grade for key, grade in known.items() if key[0] in place}
    taken = set[tuple[int, int]]()
    if ahead is not None:
        taken = {key for keys in processes.gather_objects(list(known)) for key in map(tuple, keys)}
    rest = [
        (number, sample)
        for number in groups
        if graded_here(number)
        for sample in range(width)
        if (number, sample) not in taken
    ]
    inputs = [reward_input(groups[n], s, groups[n].texts[s], mode) for n, s in rest]
    known |= dict(zip(rest, grader.grade_inputs(inputs), strict=True))
    shares = processes.gather_objects([(key, as_columns(grade)) for key, grade in known.items()])
    reward_PR = np.zeros((len(members), width), np.float32)
    parts: list[list[dict[str, float | None]]] = [[{}] * width for _ in members]
    answers: list[list[str | None]] = [[None] * width for _ in members]
    reasons = [[""] * width for _ in members]
    failed = [[False] * width for _ in members]
    for (number, r), columns in itertools.chain.from_iterable(shares):
        p = place[number]
        reward_PR[p, r], parts[p][r], answers[p][r], reasons[p][r], failed[p][r] = columns
    return Graded(
        problem_ids=tuple(group.problem_id for group in members),
        prompts=tuple(group.prompt for group in members),
        golds=tuple(group.gold for group in members),
        token_ids=tuple(tuple(r.token_ids for r in group.responses) for group in members),
        logprobs=tuple(tuple(r.logprobs for r in group.responses) for group in members),
        texts=tuple(group.texts for group in members),
        finish_reasons=tuple(tuple(r.finish_reason for r in group.responses) for group in members),
        reward_PR=reward_PR,
        versions=tuple(tuple(r.versions for r in group.responses) for group in members),
        parts=parts if any(entries for group in parts for entries in group) else None,
        correct_at=correct_at,
        answers=answers,
        reasons=reasons,
        failed=failed,
    )


def judged(
    graded: Graded,
    problems: Sequence[Problem],
    tokenizer: Any,
    *,
    reward: RewardSection,
    mode: Mode | None = None,
) -> Health:
    """What graded responses say of the policy; see `stages.health`.

    Args:
        graded: the responses as sampled.
        problems: problems that have the responses' ids.
        tokenizer: the policy's tokenizer.
        reward: the config's section.
        mode: the mode in which the responses were graded; None: `reward.mode`.
    """
    questions = {problem.id: problem.problem for problem in problems}
    return judge(
        graded,
        questions=[questions.get(problem_id, "") for problem_id in graded.problem_ids],
        prompt_texts=[
            tokenizer.decode(list(ids), skip_special_tokens=False) for ids in graded.prompts
        ],
        mode=mode or reward.mode,
        is_math=not reward.function,
        chat_tokens=turn_tokens(tokenizer),
    )


def as_columns(grade: Grade) -> tuple[float, dict[str, float | None], str | None, str, bool]:
    """Reward, parts, answer, reason, did grading fail; an answer of a page is shortened."""
    answer = grade.answer if grade.answer is None else grade.answer[:MAX_ANSWER_CHARS]
    return grade.reward, dict(grade.parts), answer, grade.reason, grade.failed


def graded_here(number: int) -> bool:
    """True if this process grades group number `number` of those that were sampled."""
    return number % jax.process_count() == jax.process_index()
