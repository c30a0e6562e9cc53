"""What a training step's rollout does besides sampling: it grades meanwhile, longest first."""

import dataclasses
import threading
import types
from collections import Counter

import numpy as np

from polaris_jax.config import RolloutSection, StageSection
from polaris_jax.state import TrainingRun
from polaris_jax.step import in_flight, roll_out
from tests.driven import DrivenSampler
from tests.rollout.fake_engine import FakeEngine
from tests.test_step_rollout import BUDGET, Loader, Run, new_sampler, stage_at

GRADED_WITHIN_S = 20.0
SECTION = RolloutSection(prompts_per_step=4, responses_per_prompt=2)


class NotingGrader:
    """Keeps what it was given."""

    def __init__(self):
        self.begun = threading.Event()
        self.texts: Counter[str] = Counter()

    def score(self, texts, golds, mode):
        self.texts.update(texts)
        if texts:
            self.begun.set()
        return np.zeros(len(texts), np.float32)


class WaitingSampler(DrivenSampler):
    """The last response ends only when somebody has graded one."""

    def __init__(self, sampler: DrivenSampler, graded: threading.Event):
        super().__init__(sampler.engine, sampler.engine.new_pool())
        self._graded = graded

    def drive(self, request, should_abort):
        for count, ended in enumerate(super().drive(request, should_abort), 1):
            if count == request.num_total:
                assert self._graded.wait(GRADED_WITHIN_S), "nothing was graded while sampling"
            yield ended


def rolled_out(run: Run, sampler: DrivenSampler, loader: Loader, *, steps_done: int = 0):
    """A step's (batch, what grades it)."""
    stage = stage_at(0, steps_done)
    groups = in_flight(run, loader, stage, attempt=0)
    return roll_out(run, sampler, groups, stage, types.SimpleNamespace(requested=False))


def test_a_step_grades_while_it_samples_and_nothing_twice():
    run = Run(SECTION, (StageSection(steps=1),))
    run.grader = grader = NotingGrader()
    rollouts, ahead = rolled_out(run, WaitingSampler(new_sampler(2, 1), grader.begun), Loader())
    graded = TrainingRun.grade(run, rollouts, ahead)  # pyright: ignore
    assert graded.reward_PR.shape == (4, 2)
    assert grader.texts.total() == 4 * 2
    assert grader.texts == Counter(
        text + response
        for text, texts in zip(rollouts.prompts.prompt_texts, rollouts.texts, strict=True)
        for response in texts
    )


class OrderedEngine(FakeEngine):
    """Notes which prompt, by its first token, every new row of a decode call is of."""

    def __init__(self, *args):
        super().__init__(*args)
        self.begun: list[int] = []

    def launch(self, model, state, **settings):
        for slot in np.flatnonzero(state.rows.alive_B):
            if state.rows.position_B[slot] == state.rows.prompt_len_B[slot] - 1:
                first = state.pages[slot][0]
                self.begun.append(state.pool.shards[0][first][0][0])
        return super().launch(model, state, **settings)


def one_at_a_time() -> DrivenSampler:
    """A sampler of one slot: a row begins when the one before it has ended."""
    engine = OrderedEngine(new_sampler(1, 1).engine.config)
    return DrivenSampler(engine, engine.new_pool())


def first_token(problem: int) -> int:
    return 1 + problem


def test_what_took_longest_at_its_last_visit_begins_first():
    run, sampler = Run(SECTION, (StageSection(steps=1),)), one_at_a_time()
    # The third was never visited: it counts as the mean of the others, 11.
    run.lengths.record(["p0", "p1", "p3"], [[[0] * length] for length in (3, 9, 21)])
    rolled_out(run, sampler, Loader())
    assert sampler.engine.begun == [first_token(p) for p in (3, 2, 1, 0) for _ in range(2)]


def test_without_a_visit_the_order_is_that_of_the_prompts():
    run, sampler = Run(SECTION, (StageSection(steps=1),)), one_at_a_time()
    rolled_out(run, sampler, Loader())
    assert sampler.engine.begun == [first_token(p) for p in (0, 1, 2, 3) for _ in range(2)]


def test_what_was_carried_over_goes_before_what_is_expected_to_be_long():
    section = dataclasses.replace(SECTION, partial_rollouts="carry", partial_share=0.6)
    run, sampler, loader = Run(section, (StageSection(steps=3),)), one_at_a_time(), Loader()
    rolled_out(run, sampler, loader)
    carried = [group.problem_id for group in run.carried]
    assert len(carried) == 3
    run.step, run.policy_version = 1, 1
    # The carried ones were short at their last visit, the new ones take nearly all they may.
    ids = [f"p{i}" for i in range(7)]
    run.lengths.record(ids, [[[0] * (1 if i in carried else BUDGET - 1)] for i in ids])
    sampler.engine.begun.clear()
    rolled_out(run, sampler, loader, steps_done=1)
    begun = list(dict.fromkeys(sampler.engine.begun))
    assert begun[: len(carried)] == [first_token(int(i[1:])) for i in carried]
