"""A command of more than an hour says so before it starts and after its first batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from polaris_jax.config import build_config
from polaris_jax.measure import workload
from polaris_jax.measure.workload import (
    UNKNOWN,
    Batches,
    Forecast,
    Workload,
    first_step_text,
    training_left,
)
from polaris_jax.records import StageState

WORK = Batches(8_000, 512, 8, 40_000)
LENGTHS = "responses have 20,000 tokens"


class Said:
    """What a person reads."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def lines_of(forecast: Forecast, work: Batches, *, batch_s: float, monkeypatch: Any) -> list[str]:
    """What is said of work whose first batch takes `batch_s` seconds."""
    now = iter([0.0, 5.0, 5.0 + batch_s])
    monkeypatch.setattr(workload.time, "monotonic", lambda: next(now))
    said: Any = Said()
    command = Workload("calibrate", [work], forecast=forecast, progress=said)
    command.starts()
    command.did(responses=work.batch, tokens=work.batch * 10_000)
    command.did(responses=work.batch, tokens=1)  # the second batch says nothing
    return said.lines


def test_hours_are_said_before_and_measured_after_the_first_batch(monkeypatch):
    known = Forecast("32 h100", 32, lambda part: 720.0, LENGTHS)
    before, after = lines_of(known, WORK, batch_s=600.0, monkeypatch=monkeypatch)
    assert before == (
        "calibrate will sample 8,000 responses, 320M tokens at most; about 3.1 h by the published "
        f"speed of 32 h100, if {LENGTHS} (an estimate; the first batch will tell)"
    )
    assert after == (
        "calibrate: the first 512 responses took 600 s, compilation included (5,120,000 tokens, "
        "8,533 a second); at this rate 7,488 responses, 74.9M tokens and 2.4 h are left"
    )


def test_an_unknown_speed_is_called_unknown(monkeypatch):
    before, after = lines_of(UNKNOWN, WORK, batch_s=1.0, monkeypatch=monkeypatch)
    assert "how many hours is unknown" in before
    assert after.endswith("0 min are left")  # what was said before is put right


@pytest.mark.parametrize(
    ("forecast", "work", "batch_s", "lines"),
    [
        pytest.param(UNKNOWN, Batches(96, 24, 8, 400), 2.0, 0, id="small"),
        pytest.param(UNKNOWN, Batches(96, 24, 8, 400), 2_000.0, 1, id="small-but-slow"),
        pytest.param(Forecast("8 h100", 8, lambda _: 1.0), WORK, 2.0, 0, id="fast"),
        pytest.param(Forecast("8 h100", 8, lambda _: 1.0), WORK, 600.0, 1, id="slower-than-said"),
        pytest.param(UNKNOWN, Batches(0, 0, 8, 400), 1.0, 0, id="nothing-left"),
    ],
)
def test_less_than_an_hour_is_not_worth_a_line(forecast, work, batch_s, lines, monkeypatch):
    work = dataclasses.replace(work, batch=work.batch or 1)
    found = lines_of(forecast, work, batch_s=batch_s, monkeypatch=monkeypatch)
    assert len(found) == lines


CONFIG = build_config(
    {
        "rollout": {"prompts_per_step": 4, "responses_per_prompt": 8},
        "stages": [
            {"steps": 10, "max_response_tokens": 100},
            {"steps": 20, "max_response_tokens": 200, "temperature_rule": "fixed"},
        ],
    }
)


@pytest.mark.parametrize(
    ("stage", "next_stage", "steps"),
    [
        pytest.param(StageState(), 0, [10, 20], id="new"),
        pytest.param(StageState(stage=0, steps_done=4), None, [6, 20], id="within"),
        pytest.param(StageState(stage=0, steps_done=10), 1, [20], id="at-a-border"),
        pytest.param(StageState(stage=1, steps_done=19), None, [1], id="last-step"),
        pytest.param(StageState(stage=1, steps_done=20, finished=True), None, [], id="end"),
    ],
)
def test_a_run_has_the_steps_left_that_it_has_not_done(stage, next_stage, steps):
    left = training_left(CONFIG, stage, next_stage)
    assert [part.responses for part in left] == [32 * count for count in steps]
    assert [part.budget for part in left] == [100, 200][2 - len(steps) :]


def test_the_first_step_is_measured_without_its_held_out_score():
    timing = {"time/rollout_s": 300.0, "time/update_s": 60.0, "time/evaluate_s": 9_000.0}
    timing["throughput/rollout_tokens_per_s"] = 10.0
    stage = StageState(stage=0, steps_done=1)
    text = first_step_text(CONFIG, stage, None, timing, samplers=2)
    assert text == (
        "train: the first 32 responses took 360 s, compilation included (6,000 tokens, 17 a "
        "second); at this rate 928 responses, 174,000 tokens and 2.9 h are left"
    )
    assert first_step_text(CONFIG, stage, None, {"time/rollout_s": 10.0}) == ""
