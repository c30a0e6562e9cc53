"""What a step of training does between its prompts and its updates, and in which order."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.support.wiring.lines import PROMPTS, TRAINED, Micro, write_problems
from tests.support.wiring.spies import (
    Calls,
    Counted,
    Recomputed,
    Recorded,
    Rescued,
    Scored,
    Stored,
    Updated,
    base_weights,
    group_advantages,
    read_lines,
    run,
)

pytestmark = pytest.mark.xdist_group("wiring")  # one worker makes what its tests share


@pytest.fixture(scope="module")
def few(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Calls:
    """Five steps of six prompts over four problems: each is drawn again and again."""
    return few_problems(micro, tmp_path_factory.mktemp("few"), steps=3)


def few_problems(micro: Micro, directory: Path, *, steps: int) -> Calls:
    """A run of two steps in stage 0 and `steps` steps in stage 1, or the rest of it."""
    problems = write_problems(directory / "few.jsonl", ["1", "2", "3", "4"], first=0)
    fields = {
        "stages[0].steps": 2,
        "stages[0].drop_above": 1.0,
        "stages[1].steps": steps,
        "stages[1].max_response_tokens": 12,
        "stages[1].rope_factor": 1.0,
        "stages[1].temperature_rule": "fixed",
    }
    return run("train", micro.line(fields, problems=problems), directory / "run")


@pytest.fixture(scope="module")
def minibatches(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Several updates a step against recomputed log-probs and the base; rewards permuted."""
    workdir = tmp_path_factory.mktemp("minibatches") / "run"
    fields = {
        "stages[1].steps": 1,
        "stages[1].max_response_tokens": 12,
        "stages[1].rope_factor": 1.0,
        "stages[1].temperature_rule": "fixed",
        "batch.substitute": False,  # what is rescued is what is packed
        "batch.share_prompts": "auto",
        "objective.minibatches": 2,
        "objective.old_logprobs": "recompute",
        "objective.kl_coef": 0.1,
        "reward.mode": "eval",
        "reward.control": "permute",
    }
    return Recorded(workdir, run("train", micro.line(fields), workdir))


def test_accuracy_is_recorded_then_failures_are_rescued_then_the_sink_is_updated(few: Calls):
    calls = few.of(Counted, Rescued, Stored)
    assert [type(call) for call in calls] == [Counted, Rescued, Stored] * 5
    for counted, rescued, stored in zip(calls[::3], calls[1::3], calls[2::3], strict=True):
        # Accuracy is that of what was sampled, and so is what is rescued.
        assert counted.problem_ids == list(rescued.got.problem_ids)
        assert np.array_equal(counted.reward_PR, rescued.got.reward_PR)
        assert not rescued.got.rescued_PR.any()
        # The sink gets what came out of it, and keeps none of that as new.
        assert np.array_equal(stored.got.rescued_PR, rescued.gave.rescued_PR)
        assert np.array_equal(stored.got.reward_PR, rescued.gave.reward_PR)
        assert rescued.gave.rescued_PR.sum() == rescued.count
    assert sum(call.count for call in few.of(Rescued)) > 0
    assert [call.stage for call in few.of(Counted)] == [0, 0, 1, 1, 1]
    assert [call.stage for call in few.of(Stored)] == [0, 0, 1, 1, 1]


def seeds(calls: Calls) -> list[list[tuple[tuple[int, ...], int]]]:
    """(prompt, seed) pairs of each step's rollout."""
    return [list(zip(call.prompts, call.params.seed, strict=True)) for call in calls.asked(TRAINED)]


def test_each_draw_of_a_problem_has_a_seed_of_its_own(few: Calls):
    steps = seeds(few)
    assert all(len(dict(pairs)) == 4 for pairs in steps)  # so a step draws some twice
    drawn = [pair for pairs in steps for pair in pairs]
    assert len({seed for _, seed in drawn}) == len(drawn) == 5 * PROMPTS


def test_a_rerun_and_a_resumed_run_draw_with_the_same_seeds(
    few: Calls, micro: Micro, tmp_path: Path
):
    first = seeds(few_problems(micro, tmp_path, steps=1))
    rest = seeds(few_problems(micro, tmp_path, steps=3))  # the last stage has grown by two
    assert (len(first), len(rest)) == (3, 2)
    assert first + rest == seeds(few)


def by_step(calls: Calls) -> list[Calls]:
    """The calls of each step, from the record of its accuracy on."""
    steps: list[Calls] = []
    for call in calls:
        if isinstance(call, Counted):
            steps.append(Calls())
        if steps:
            steps[-1].append(call)
    return steps


def test_a_step_has_as_many_updates_as_minibatches(minibatches: Recorded):
    steps = by_step(minibatches.calls)
    assert [len(step.of(Updated)) for step in steps] == [2, 2, 2]
    updates = minibatches.calls.of(Updated)
    assert [update.weights for update in updates[1:]] == [update.gave for update in updates[:-1]]
    assert len({update.gave for update in updates}) == 6


def test_old_logprobs_are_those_of_the_weights_before_the_step(minibatches: Recorded):
    for step in by_step(minibatches.calls):
        recomputed, updates = step.of(Recomputed), step.of(Updated)
        # All of them before the first update, which moves the weights.
        kinds = [type(call) for call in step.of(Recomputed, Updated)]
        assert kinds == [Recomputed, Recomputed, Updated, Updated]
        assert {call.weights for call in recomputed} == {updates[0].weights}
        for one, update in zip(recomputed, updates, strict=True):
            assert np.array_equal(update.batch.old_logp_BT, one.gave.old_logp_BT)
            assert update.batch.sampler_logp_BT is not None
            assert np.array_equal(update.batch.token_BT, one.gave.token_BT)


def test_the_reference_of_the_kl_term_stays_the_base_model(minibatches: Recorded, micro: Micro):
    updates = minibatches.calls.of(Updated)
    base = base_weights(micro.base)
    assert {update.reference for update in updates} == {base}
    assert base not in {update.gave for update in updates}
    lines = read_lines(minibatches.workdir / "metrics.jsonl")
    assert all(line["update/kl"] > 0 for line in lines[1:])


def test_without_a_kl_term_there_is_no_reference(few: Calls):
    assert {update.reference for update in few.of(Updated)} == {None}
    assert few.of(Recomputed) == []


def test_training_is_graded_in_the_configured_mode(minibatches: Recorded):
    scored = minibatches.calls.of(Scored)
    assert {call.mode for call in scored} == {"eval"}
    assert sum(len(call.texts) for call in scored) == 3 * PROMPTS * TRAINED


def test_permuted_rewards_are_the_groups_own_in_another_order(minibatches: Recorded):
    given = {
        (text, gold): reward
        for call in minibatches.calls.of(Scored)
        for text, gold, reward in zip(call.texts, call.golds, call.rewards, strict=True)
    }
    moved = 0
    for rescued in minibatches.calls.of(Rescued):
        got = rescued.got
        graded_PR = np.array(
            [
                [given[text, repr(gold)] for text in group]
                for group, gold in zip(got.texts, got.golds, strict=True)
            ]
        )
        assert np.array_equal(np.sort(graded_PR, axis=1), np.sort(got.reward_PR, axis=1))
        moved += int((graded_PR != got.reward_PR).any(axis=1).sum())
    assert moved > 0


def test_the_update_gets_the_tokens_with_the_advantages_of_those_rewards(minibatches: Recorded):
    for step in by_step(minibatches.calls):
        [rescued] = step.of(Rescued)
        graded = rescued.gave
        advantage_PR = group_advantages(graded.reward_PR)
        expected = Counter(
            ((*graded.prompts[p], *tokens), round(float(advantage_PR[p, r]), 4))
            for p, group in enumerate(graded.token_ids)
            for r, tokens in enumerate(group)
        )
        assert sum((segments(update) for update in step.of(Updated)), Counter()) == expected


def segments(update: Updated) -> Counter[tuple[tuple[int, ...], float]]:
    """How often a batch holds each sequence of tokens with an advantage."""
    found: Counter[tuple[tuple[int, ...], float]] = Counter()
    batch = update.batch
    assert batch.branch_BT is not None
    for row, (segment_T, branch_T) in enumerate(
        zip(batch.segment_BT, batch.branch_BT, strict=True)
    ):
        for segment, branch in sorted({*zip(segment_T.tolist(), branch_T.tolist(), strict=True)}):
            if not branch:
                continue
            own_T = (segment_T == segment) & (branch_T == branch)
            advantage = batch.advantage_BT[row][own_T & (batch.weight_BT[row] > 0)]
            assert len(set(advantage.tolist())) == 1
            shared_T = (segment_T == segment) & (branch_T == 0)
            tokens = tuple(batch.token_BT[row][shared_T | own_T].tolist())
            found[tokens, round(float(advantage[0]), 4)] += 1
    return found


def test_a_run_says_that_its_rows_share_prompts(minibatches: Recorded):
    record = json.loads((minibatches.workdir / "run.json").read_text())
    assert record["config"]["batch.share_prompts"] == "auto"
    assert record["numerics"]["shared prompts"] is True
    assert record["numerics"].keys() >= {"microbatch rows", "row tokens", "remat", "attention"}
    lines = read_lines(minibatches.workdir / "metrics.jsonl")
    shared = [line["batch/shared_prompt_tokens"] for line in lines if line["step"] >= 0]
    saved = [
        sum(update.batch.shared_prompt_tokens for update in step.of(Updated))
        for step in by_step(minibatches.calls)
    ]
    assert shared == saved and min(saved) > 0
