"""The stage controller is a pure function of what it is given."""

import dataclasses

import pytest

from polaris_jax.config.sections import StageSection
from polaris_jax.stages import StepStats, initial_state, observe, stage_ended

STAGES = (
    StageSection(steps=3, max_response_tokens=100, temperature=1.4),
    StageSection(steps=2, max_response_tokens=200, temperature=1.45),
    StageSection(steps=1, max_response_tokens=300, temperature=1.5),
)


def steps(state, *entropies, stages=STAGES):
    decisions = []
    for entropy in entropies:
        state, decisions = observe(state, StepStats(entropy=entropy), stages)
    return state, decisions


def test_first_state_takes_the_stages_own_settings():
    state = initial_state(STAGES)
    assert (state.stage, state.first_step, state.steps_done) == (0, 0, 0)
    assert (state.temperature, state.max_response_tokens) == (1.4, 100)
    assert (state.dropped_ids, state.decisions, state.finished) == ((), (), False)
    assert (state.first_entropy, state.last_entropy, state.target_diversity) == (None, None, None)


def test_a_run_can_begin_at_a_later_stage():
    state = initial_state(STAGES, stage=1, step=40, temperature=1.6, dropped_ids=["a", "b", "a"])
    assert (state.stage, state.first_step, state.temperature) == (1, 40, 1.6)
    assert (state.max_response_tokens, state.dropped_ids) == (200, ("a", "b"))
    with pytest.raises(ValueError, match="stages 0 to 2"):
        initial_state(STAGES, stage=3)


def test_a_stage_ends_with_its_last_step_and_only_then_decides():
    state = initial_state(STAGES)
    for done in (1, 2):
        state, decisions = observe(state, StepStats(0.5), STAGES)
        assert (state.steps_done, decisions) == (done, [])
        assert not stage_ended(state, STAGES)
    state, decisions = observe(state, StepStats(0.5), STAGES)
    assert stage_ended(state, STAGES)
    assert not state.finished
    assert [set(d) for d in decisions] == [{"kind", "value", "reason", "table"}]
    assert (decisions[0]["kind"], decisions[0]["value"]) == ("stage_end", 0)


def test_observe_changes_nothing_it_is_given():
    state = initial_state(STAGES)
    before = dataclasses.replace(state)
    results = [observe(state, StepStats(0.5), STAGES) for _ in range(2)]
    assert state == before
    assert results[0] == results[1]


def test_entropies_are_those_of_the_stages_first_and_newest_update():
    state, _ = steps(initial_state(STAGES), None, 0.8, 0.6)
    assert (state.first_entropy, state.last_entropy) == (0.8, 0.6)
    state, _ = steps(initial_state(STAGES), 0.9, 0.7, None)
    assert (state.first_entropy, state.last_entropy) == (0.9, 0.7)
    state, _ = steps(initial_state(STAGES), float("nan"), 0.7, float("inf"))
    assert (state.first_entropy, state.last_entropy) == (0.7, 0.7)


def test_the_run_finishes_with_its_last_stage_and_never_steps_on():
    state, _ = steps(initial_state(STAGES, stage=1), 0.5, 0.4)
    assert not state.finished
    state, decisions = steps(initial_state(STAGES, stage=2, step=5), 0.4)
    assert state.finished
    assert decisions[0]["value"] == 2
    with pytest.raises(ValueError, match="has done its 1 steps"):
        steps(state, 0.4)


def test_no_step_between_two_stages():
    state, _ = steps(initial_state(STAGES), 0.9, 0.7, 0.5)
    with pytest.raises(ValueError, match="enter the next"):
        steps(state, 0.5)
