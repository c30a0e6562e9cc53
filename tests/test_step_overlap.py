"""What a training step's rollout does besides sampling: it grades meanwhile, longest first."""

import dataclasses
import threading
from collections import Counter

import numpy as np

from polaris_jax.config import RolloutSection
from polaris_jax.step import draw, grade, sample
from tests.support.driven import DrivenSampler
from tests.support.parts import NothingRight, make_parts
from tests.support.rollout.fake_engine import FakeEngine
from tests.test_step import BUDGET, NEVER, Tokenizer, after, new_parts, new_sampler, new_state

GRADED_WITHIN_S = 20.0
SECTION = RolloutSection(prompts_per_step=4, responses_per_prompt=2)


class NotingGrader(NothingRight):
    """Keeps what it was given."""

    def __init__(self):
        self.begun = threading.Event()
        self.texts: Counter[str] = Counter()

    def grade_inputs(self, responses):
        self.texts.update(one.graded_text for one in responses)
        if responses:
            self.begun.set()
        return super().grade_inputs(responses)


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


def sampled(parts, state):
    """A step's (state, batch, what grades it)."""
    state, groups = draw(parts, state, attempt=0)
    return sample(parts, state, groups, stop=NEVER)


def test_a_step_grades_while_it_samples_and_nothing_twice():
    grader = NotingGrader()
    config = new_parts(SECTION, 1).config
    parts = make_parts(config, tokenizer=Tokenizer(), grader=grader)
    state = new_state(WaitingSampler(new_sampler(2, 1), grader.begun))
    state, batch, ahead = sampled(parts, state)
    graded = grade(parts, state, batch, ahead)
    assert graded.reward_PR.shape == (4, 2)
    assert grader.texts.total() == 4 * 2
    assert grader.texts == Counter(
        (group.opening or "") + response for group in batch.values() for response in group.texts
    )


class OrderedEngine(FakeEngine):
    """Notes which prompt, by its first token, every new row of a decode call is of."""

    def __init__(self, *args):
        super().__init__(*args)
        self.begun: list[int] = []

    def dispatch(self, model, state, **settings):
        for slot in np.flatnonzero(state.rows.alive_B):
            if state.rows.position_B[slot] == state.rows.prompt_len_B[slot] - 1:
                first = state.pages[slot][0]
                self.begun.append(state.pool.shards[0][first][0][0])
        return super().dispatch(model, state, **settings)


def one_at_a_time() -> DrivenSampler:
    """A sampler of one slot: a row begins when the one before it has ended."""
    engine = OrderedEngine(new_sampler(1, 1).engine.config)
    return DrivenSampler(engine, engine.new_pool())


def begun(state) -> list[int]:
    """First tokens of the prompts whose rows have begun, in order."""
    return state.sampler.engine.begun


def first_token(problem: int) -> int:
    return 1 + problem


def test_what_took_longest_at_its_last_visit_begins_first():
    parts, state = new_parts(SECTION, 1), new_state(one_at_a_time())
    # The third was never visited: it counts as the mean of the others, 11.
    state.lengths.record(["p0", "p1", "p3"], [[[0] * length] for length in (3, 9, 21)])
    sampled(parts, state)
    assert begun(state) == [first_token(p) for p in (3, 2, 1, 0) for _ in range(2)]


def test_without_a_visit_the_order_is_that_of_the_prompts():
    parts, state = new_parts(SECTION, 1), new_state(one_at_a_time())
    sampled(parts, state)
    assert begun(state) == [first_token(p) for p in (0, 1, 2, 3) for _ in range(2)]


def test_what_was_carried_over_goes_before_what_is_expected_to_be_long():
    section = dataclasses.replace(SECTION, partial_rollouts="carry", partial_share=0.6)
    parts, state = new_parts(section, 3), new_state(one_at_a_time())
    state, _, _ = sampled(parts, state)
    carried = [group.problem_id for group in state.carried]
    assert len(carried) == 3
    state = after(state)
    # The carried ones were short at their last visit, the new ones take nearly all they may.
    ids = [f"p{i}" for i in range(7)]
    state.lengths.record(ids, [[[0] * (1 if i in carried else BUDGET - 1)] for i in ids])
    begun(state).clear()
    sampled(parts, state)
    first = list(dict.fromkeys(begun(state)))
    assert first[: len(carried)] == [first_token(int(i[1:])) for i in carried]
