"""Guards warn of steps in a row, end a run if configured so, and say nothing of a healthy run."""

import dataclasses
import json

import pytest

from polaris_jax.config import ConfigError, GuardsSection, build_config
from polaris_jax.stages.guards import History, failed_grading, is_due, watch

HEALTHY = {
    "stage": 0,
    "batch/informative_groups": 3,
    "batch/steps_without_update": 0,
    "rollout/reward_mean": 0.02,
    "rollout/clip_ratio": 0.3,
    "rollout/mean_length": 100.0,
    "update/entropy": 0.5,
}
IDLE = {"batch/informative_groups": 0, "batch/steps_without_update": 1}


def run(changes, *, section=None, history=None):
    """All lines that the guards print over steps of changed metrics, and the last history."""
    history, said = history or History(), []
    for step, change in enumerate(changes):
        history, lines = watch(
            history, HEALTHY | change, step=step, section=section or GuardsSection()
        )
        said += lines
    return said, history


def test_a_run_at_two_per_cent_reward_whose_groups_inform_is_healthy():
    said, history = run([{}] * 60)
    assert said == []
    assert history.summary() == ""


def test_steps_in_a_row_without_an_informative_group():
    said, _ = run([IDLE] * 4 + [{}] + [IDLE] * 4)
    assert said == []
    said, history = run([IDLE] * 40)
    assert [line.split(":")[0] for line in said] == ["step 4", "step 9", "step 19", "step 39"]
    assert "5 steps in a row" in said[0]
    assert history.summary().startswith("40 of 40 steps taught nothing")


def test_fifty_five_of_sixty_steps_without_an_update_are_said_at_the_end():
    _, history = run(([IDLE] * 11 + [{}]) * 5)
    assert history.summary().startswith("55 of 60 steps taught nothing")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rollout/reward_mean": 0.0}, "every reward is 0"),
        ({"rollout/clip_ratio": 0.95}, "rollout/clip_ratio=0.95 over guards.clip_ratio=0.9"),
        ({"rollout/mean_length": 400.0}, "over guards.length_growth=3"),
        ({"update/entropy": 0.01}, "under guards.entropy_low=0.1"),
        ({"update/entropy": 4.0}, "over guards.entropy_high=5"),
    ],
    ids=["zero-reward", "clip", "length", "collapse", "explosion"],
)
def test_each_guard_fires_once_its_condition_has_lasted(change, words):
    said, _ = run([{}] * 3 + [change] * 5)
    assert len(said) == 1
    assert words in said[0]
    assert "look at" in said[0]
    assert run([{}] * 3 + [change] * 2)[0] == []


def test_a_stage_has_a_start_of_its_own():
    longer = {"stage": 1, "rollout/mean_length": 400.0}
    assert run([{}] * 3 + [longer] * 9)[0] == []


def test_a_guard_may_end_the_run():
    section = GuardsSection(stop="clip, uninformative", uninformative_steps=2)
    with pytest.raises(RuntimeError, match=r"step 1: .*guards.stop names uninformative"):
        run([IDLE] * 2, section=section)
    assert run([IDLE] * 9, section=GuardsSection(uninformative_steps=0))[0] == []


def test_a_resumed_run_goes_by_the_same_history():
    changes = [{}] * 3 + [IDLE | {"update/entropy": None}] * 12
    said, history = run(changes)
    _, half = run(changes[:6])
    restored = History(**json.loads(json.dumps(dataclasses.asdict(half))))
    rest, end = restored, []
    for step, change in enumerate(changes[6:], start=6):
        rest, lines = watch(rest, HEALTHY | change, step=step, section=GuardsSection())
        end += lines
    assert end == said[-len(end) :]
    assert dataclasses.asdict(rest) == dataclasses.asdict(history)


def test_streaks_are_said_at_powers_of_two():
    assert [n for n in range(50) if is_due(n, 3)] == [3, 6, 12, 24, 48]
    assert not any(is_due(n, 0) for n in range(9))


def test_grading_that_fails_too_often():
    line = {"reward/graded": 100, "reward/timeouts": 3, "reward/errors": 4}
    text = failed_grading(line, step=7, section=GuardsSection())
    assert text.startswith("step 7: grading failed for 7 of 100 answers (timeouts 3, errors 4)")
    assert failed_grading(line | {"reward/errors": 2}, step=7, section=GuardsSection()) == ""
    with pytest.raises(RuntimeError, match=r"guards.stop names grader"):
        failed_grading(line, step=7, section=GuardsSection(stop="grader"))


def test_an_unknown_guard_is_refused():
    with pytest.raises(ConfigError, match=r"guards.stop='entropie': entropie is no guard"):
        build_config({"guards": {"stop": "entropie"}})
