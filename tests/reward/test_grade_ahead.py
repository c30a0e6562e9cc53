"""Grading while others are sampled gives what grading afterwards gives."""

import dataclasses
import threading

import numpy as np
import pytest

from polaris_jax.measure.solve import grade_groups
from polaris_jax.records import Group, Response
from polaris_jax.reward import Grader
from polaris_jax.reward.grade_ahead import GradeAhead
from polaris_jax.rollout import RolloutAborted, SamplingParams
from polaris_jax.rollout.groups import begin, sample_groups
from tests.support.parts import NothingRight

PROBLEMS, N = 4, 3
TURN = "<think></think>So "
DRAWN = [
    Group(f"p{i}", (i + 1,), f"What is {i}?{TURN}", str(i), draw=0, epoch=0, opening=TURN)
    for i in range(PROBLEMS)
]


class Tokenizer:
    """A token is its own number in a box."""

    eos_token_id = 99

    def get_vocab(self):
        return {}

    def decode(self, token_ids, skip_special_tokens):
        return f"\\boxed{{{token_ids[0]}}}"


class ShuffledSampler:
    """Sample s of prompt p answers (p + s) % 2 + p; responses end in a shuffled order."""

    share, members = (0, 1), (0,)

    def __init__(self, seed: int, aborts_after: int = 10**6):
        self._order = np.random.default_rng(seed).permutation(PROBLEMS * N).tolist()
        self._aborts_after = aborts_after
        self.asked = {}

    def drop_prefixes(self):
        pass

    def submit(self, prompts, params, **asked):
        self.asked = asked
        return self

    def responses(self):
        return [[self._response(p, s) for s in range(N)] for p in range(PROBLEMS)]

    def _response(self, p, s):
        return Response(((p + s) % 2 + p,), (-1.0,), "stop")

    def drive(self, request, should_abort):
        for count, k in enumerate(self._order):
            if count == self._aborts_after:
                raise RolloutAborted("enough")
            p, s = divmod(k, N)
            yield p, s, self._response(p, s)


def sampled(sampler, **more) -> dict[int, Group]:
    groups = sample_groups(
        sampler,
        begin(DRAWN, n=N, version=0, seed_parts=(0,)),
        SamplingParams(n=N, max_tokens=5, stop_token_ids=()),
        tokenizer=Tokenizer(),
        wanted=PROBLEMS,
        **more,
    )
    return dict(enumerate(groups))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_rewards_are_those_of_grading_afterwards(mode, seed):
    with Grader(workers=1) as grader:
        after = grade_groups(grader, sampled(ShuffledSampler(9)), mode=mode)
        with GradeAhead(grader, mode) as ahead:
            groups = sampled(ShuffledSampler(seed), on_ended=ahead.add)
        graded = grade_groups(grader, groups, mode=mode, ahead=ahead)
    np.testing.assert_array_equal(graded.reward_PR, after.reward_PR)
    assert graded.texts == after.texts
    assert graded.token_ids == after.token_ids
    assert 0 < graded.reward_PR.mean() < 1


def test_what_was_not_graded_ahead_is_graded_afterwards():
    with Grader(workers=1) as grader:
        groups = sampled(ShuffledSampler(0))
        after = grade_groups(grader, groups, mode="eval")
        with GradeAhead(grader, "eval") as ahead:
            # Rewards that grading would not give: they show which were taken from here.
            other = dataclasses.replace(groups[2], gold="x")
            ahead.add(2, other, dict.fromkeys(range(N), "\\boxed{x}"))
        graded = grade_groups(grader, groups, mode="eval", ahead=ahead)
    np.testing.assert_array_equal(graded.reward_PR[[0, 1, 3]], after.reward_PR[[0, 1, 3]])
    assert graded.reward_PR[2].tolist() == [1.0] * N != after.reward_PR[2].tolist()


def test_a_group_is_graded_while_others_are_sampled():
    graded = threading.Event()

    class Noting(NothingRight):
        def reward(self, response):
            graded.set()
            return 0.0

    class Waiting(ShuffledSampler):
        def drive(self, request, should_abort):
            for count, ended in enumerate(super().drive(request, should_abort)):
                # The last response ends only when some group has been graded.
                if count == PROBLEMS * N - 1:
                    assert graded.wait(timeout=30)
                yield ended

    with GradeAhead(Noting(), "train") as ahead:
        sampled(Waiting(1), on_ended=ahead.add)


def test_an_aborted_rollout_lets_go_of_what_is_not_graded():
    release, calls = threading.Event(), []

    class Slow(NothingRight):
        def grade_inputs(self, responses):
            calls.append(responses)
            release.wait(timeout=30)
            return super().grade_inputs(responses)

    with pytest.raises(RolloutAborted), GradeAhead(Slow(), "train") as ahead:
        sampled(ShuffledSampler(1, aborts_after=PROBLEMS * N - 1), on_ended=ahead.add)
    release.set()
    ahead._thread.shutdown(wait=True)
    assert len(calls) <= 1


def test_expectations_go_to_the_sampler():
    sampler = ShuffledSampler(0)
    sampled(sampler, expected_tokens=[4.0, 3.0, 2.0, 1.0])
    assert sampler.asked["expected_tokens"] == [4.0, 3.0, 2.0, 1.0]
