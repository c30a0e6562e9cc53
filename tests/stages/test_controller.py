"""The stage controller is a pure function of what it is given."""

import dataclasses

import pytest

from polaris_jax.config.sections import StageSection
from polaris_jax.stages import StepStats, initial_state, observe, observe_score, stage_ended

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


def run_stage(section, rows, *, first_step=0):
    """The state after steps of (entropy, reward, clip ratio), and the number of steps done."""
    state = initial_state((section, section), step=first_step)
    for row in rows:
        state, _ = observe(state, StepStats(*row), (section, section))
        if stage_ended(state, (section, section)):
            break
    return state


RISING = [(0.5, 0.1 + 0.02 * i, 0.0) for i in range(20)]
FLAT = [(0.5, 0.3 + 0.001 * (i % 2), 0.0) for i in range(20)]


@pytest.mark.parametrize(
    ("fields", "rows", "steps_done", "rule"),
    [
        ({}, FLAT, 20, None),
        ({"end_reward_gain": 0.01}, RISING, 20, None),
        ({"end_reward_gain": 0.01}, FLAT, 8, "end_reward_gain"),
        ({"end_reward_gain": 0.01}, RISING[:10] + [RISING[10]] * 10, 17, "end_reward_gain"),
        ({"end_reward_gain": 0.01}, [(None, None, None)] * 20, 20, None),
        ({"end_clip_ratio": 0.2}, [(0.5, 0.3, 0.02 * i) for i in range(20)], 13, "end_clip_ratio"),
        ({"end_clip_ratio": 0.9}, [(0.5, 0.3, 0.02 * i) for i in range(20)], 20, None),
        ({"end_entropy": 0.2}, [(0.5 - 0.05 * i, 0.3, 0) for i in range(20)], 9, "end_entropy"),
        ({"end_entropy": 0.2}, [(0.1, 0.3, 0)] + [(0.5, 0.3, 0)] * 19, 20, None),  # one step alone
        ({"end_entropy": 0.2}, [(None, 0.3, 0)] * 20, 20, None),  # no update, no entropy
        ({"end_entropy": 0.2, "end_clip_ratio": 0.2}, [(0.1, 0.3, 0.5)] * 20, 4, "end_entropy"),
    ],
)
def test_a_rule_may_end_a_stage_before_its_last_step(fields, rows, steps_done, rule):
    section = StageSection(steps=20, end_window=4, **fields)
    state = run_stage(section, rows, first_step=100)
    assert state.steps_done == steps_done
    assert (state.ending and state.ending["value"]) == rule
    assert len(state.recent) <= 8
    if rule:
        (row,) = state.ending["table"]
        limit = fields[rule]
        assert (row["rule"], row["limit"], row["window"]) == (rule, limit, 4)
        assert f"over steps {96 + steps_done} to {99 + steps_done}" in state.ending["reason"]
        assert f"stages[0].{rule}={limit:g}" in state.ending["reason"]
        gain = row["mean"] - (row["former"] or 0)
        assert gain > limit if rule == "end_clip_ratio" else gain < limit


def test_a_stage_of_early_end_leaves_no_trace_without_a_rule():
    state = run_stage(StageSection(steps=20), FLAT)
    assert (state.recent, state.scores, state.ending) == ((), (), None)


@pytest.mark.parametrize(
    ("scores", "ends_at"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], None),
        ([0.1, 0.2, 0.3, 0.3, 0.3, 0.3], 10),  # 0.3 over steps 7 to 10, 0.25 over 3 to 6
        ([0.5, 0.5, 0.5, 0.5], 8),
    ],
)
def test_held_out_scores_may_end_a_stage(scores, ends_at):
    section = StageSection(steps=20, end_window=4, end_score_gain=0.06)
    sections = (section, section)
    state, ended = initial_state(sections), None
    for score in scores:
        for _ in range(2):
            state, _ = observe(state, StepStats(0.5, 0.3, 0.0), sections)
        state, decisions = observe_score(state, score, sections)
        if stage_ended(state, sections):
            ended = state.steps_done
            assert decisions == [state.ending]
            break
    assert ended == ends_at
    assert all(done > state.steps_done - 8 for done, _ in state.scores)


def test_a_stage_that_a_rule_has_ended_may_complete_what_is_in_flight():
    """Under carry the groups in flight are completed in one more step."""
    section = StageSection(steps=20, end_window=1, end_entropy=1.0)
    state = run_stage(section, [(0.5, 0.3, 0.0)])
    ending = state.ending
    state, decisions = observe(state, StepStats(2.0, 0.3, 0.0), (section, section))
    assert (state.steps_done, state.ending, decisions) == (2, ending, [ending])


def test_the_last_stage_may_end_early_too():
    section = StageSection(steps=20, end_window=1, end_entropy=1.0)
    state, _ = observe(initial_state((section,)), StepStats(0.5), (section,))
    assert state.finished


def test_the_fall_in_entropy_is_a_difference_of_means():
    noise = [0.1, -0.1, 0.1, -0.1, 0.0]
    falling = [0.8 + x for x in noise] + [0.7] * 3 + [0.6 + x for x in noise]
    state, _ = steps(initial_state(LONG), *falling, stages=LONG)
    assert (state.first_entropy, state.last_entropy) == pytest.approx((0.8, 0.6))
    assert len(state.first_entropies) == len(state.last_entropies) == 5
    # Half of the steps each, so that no step is in both means.
    state, _ = steps(initial_state(LONG), 0.9, 0.7, 0.5, 0.1, stages=LONG)
    assert (state.first_entropy, state.last_entropy) == pytest.approx((0.8, 0.3))


def test_a_stage_that_an_earlier_version_began_keeps_its_first_entropy():
    state = initial_state(LONG)
    state = dataclasses.replace(state, steps_done=3, first_entropy=0.9, last_entropy=0.7)
    state, _ = steps(state, 0.5, stages=LONG)
    assert (state.first_entropy, state.last_entropy) == (0.9, 0.5)


LONG = (StageSection(steps=50),)
