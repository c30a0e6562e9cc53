"""What a step's statistics say is what the policy sampled, whatever is rescued or substituted."""

import dataclasses
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from polaris_jax import loop
from polaris_jax.batch import RescueBuffer
from polaris_jax.config import BatchSection
from polaris_jax.records import Graded, StageState
from polaris_jax.run.step_clock import StepClock
from polaris_jax.stages.difficulty import AccuracyTable
from polaris_jax.stages.lengths import LengthTable

STAGE = StageState(
    stage=1, first_step=5, steps_done=2, temperature=1.4, max_response_tokens=16, finished=False
)
STORED_STEP, STORED_TEMPERATURE = 3, 0.2
# The four of a failed group differ in length and in repetition, so that to lose any one shows.
LENGTHS = (2, 3, 5, 9)
TEXTS = ("a b c d", "e e e e e e", "f g h i j j j j j", "k k k k k k k k")
DISTINCT = (1 + 1 + 5 + 1) / (1 + 3 + 6 + 5)  # 4-grams, which never cross responses
STORED_TOKENS = (7,) * 13


def graded_of(*groups: tuple[str, list[int]], temperature: float = STAGE.temperature) -> Graded:
    """Groups by problem id and rewards."""
    ids, rewards = zip(*groups, strict=True)
    rows = range(len(rewards[0]))
    return Graded(
        problem_ids=ids,
        prompts=[(1,)] * len(ids),
        golds=["1"] * len(ids),
        token_ids=[[(5,) * LENGTHS[r] for r in rows] for _ in ids],
        logprobs=[[(-1.0,) * LENGTHS[r] for r in rows] for _ in ids],
        texts=[[TEXTS[r] for r in rows] for _ in ids],
        finish_reasons=[["stop"] * len(rows) for _ in ids],
        reward_PR=np.array(rewards, np.float32),
        temperature_PR=np.full((len(ids), len(rows)), temperature),
    )


class Run:
    """The part of a `TrainingRun` that a visit reads and writes, with its real tables."""

    def __init__(self, *drawn: Graded, **batch: Any) -> None:
        section = BatchSection(**batch)
        rollout = SimpleNamespace(partial_rollouts="wait")
        self.config = SimpleNamespace(batch=section, rollout=rollout)
        self.step, self.clock, self.counts = 7, StepClock(), Counter()
        self.accuracy, self.lengths, self.sink = AccuracyTable(), LengthTable(), RescueBuffer()
        self.drawn, self.written = list(drawn), []
        self.files = SimpleNamespace(
            write_rollouts=lambda _, graded, **__: self.written.append(graded)
        )

    def rng(self, name: str, attempt: int) -> np.random.Generator:
        return np.random.default_rng(attempt)

    def grade(self, rollouts: Any, ahead: Any) -> Graded:
        return self.drawn.pop(0)

    def count(self, **numbers: int) -> None:
        self.counts.update(numbers)

    def right_and_seen(self, *problem_ids: str) -> list[tuple[int, int]]:
        return [self.accuracy.counts(problem_id, STAGE.stage) for problem_id in problem_ids]


@pytest.fixture(autouse=True)
def nothing_is_sampled(monkeypatch):
    rollouts = SimpleNamespace(prompts=SimpleNamespace(draws=(), epoch=0))
    monkeypatch.setattr(loop, "in_flight", lambda *_, **__: [])
    monkeypatch.setattr(loop, "roll_out", lambda *_: (rollouts, None))


def visit(run: Any) -> tuple[Graded, dict[str, Any]]:
    nothing: dict[str, Any] = dict.fromkeys(("sampler", "loader", "stop"))
    return loop.visit(run, stage=STAGE, **nothing)


def make_informative(run: Any, graded: Graded):
    nothing: dict[str, Any] = dict.fromkeys(("sampler", "loader", "stop"))
    return loop.make_informative(run, graded, stage=STAGE, **nothing)


def store(run: Run, problem_id: str) -> None:
    """A correct response of an earlier step: long, cold and unlike the others."""
    earlier = graded_of((problem_id, [0, 1]))
    earlier = dataclasses.replace(
        earlier,
        token_ids=[[(5,), STORED_TOKENS]],
        logprobs=[[(-1.0,), (-2.0,) * 13]],
        texts=[["x", "z z z z z z z z z z"]],
    )
    run.sink.update(earlier, step=STORED_STEP, stage=0, temperature=STORED_TEMPERATURE)


def test_a_rescue_reaches_the_batch_and_no_statistic():
    run = Run(graded_of(("failed", [0, 0, 0, 0])))
    store(run, "failed")
    batch, metrics = visit(run)
    # The batch has it,
    assert batch.reward_PR.sum() == batch.rescued_PR.sum() == run.counts["rescued_groups"] == 1
    (row,) = np.flatnonzero(batch.rescued_PR[0])
    assert batch.token_ids[0][row] == STORED_TOKENS
    assert batch.temperature_PR[0, row] == STORED_TEMPERATURE
    # accuracy, lengths and metrics are those of the four that were sampled,
    assert run.right_and_seen("failed") == [(0, 4)]
    assert run.lengths.expected(["failed"], limit=99) == [np.mean(LENGTHS)]
    assert run.counts["sampled_tokens"] == sum(LENGTHS)
    assert metrics["rollout/reward_mean"] == metrics["rollout/informative_share"] == 0
    assert metrics["rollout/mean_length"] == metrics["rollout/mean_length_incorrect"]
    assert metrics["rollout/mean_length"] == np.mean(LENGTHS)
    assert metrics["rollout/mean_length_correct"] is None
    assert metrics["rollout/temperature"] == STAGE.temperature
    assert metrics["rollout/diversity"] == pytest.approx(DISTINCT)
    # and so are the responses on the disk; what was stored is not stored anew.
    assert not run.written[0].rescued_PR.any()
    assert run.sink.get("failed").step == STORED_STEP


def test_without_rescue_the_statistics_are_the_same():
    runs = [Run(graded_of(("failed", [0, 0, 0, 0])), rescue=rescue) for rescue in (True, False)]
    metrics = []
    for run in runs:
        store(run, "failed")
        metrics.append(visit(run)[1])
    assert metrics[0] == metrics[1]
    assert runs[0].accuracy.state_dict() == runs[1].accuracy.state_dict()
    assert [run.counts["rescued_groups"] for run in runs] == [1, 0]


def test_a_substituted_problem_is_counted_and_its_donor_once():
    groups = ("failed", [0, 0, 0, 0]), ("solved", [1, 1, 1, 1]), ("mixed", [1, 0, 0, 1])
    run = Run(graded_of(*groups))
    batch, metrics = visit(run)
    batch, swapped = make_informative(run, batch)
    assert list(batch.problem_ids) == ["mixed"] * 3
    assert (swapped.replaced, swapped.reused) == (2, 1)
    assert run.right_and_seen("failed", "solved", "mixed") == [(0, 4), (4, 4), (2, 4)]
    assert metrics["rollout/reward_mean"] == 0.5
    assert metrics["rollout/informative_share"] == pytest.approx(1 / 3)


def test_what_is_drawn_again_is_counted_once_and_leaves_the_steps_metrics():
    first = graded_of(("failed", [0, 0, 0, 0]), ("solved", [1, 1, 1, 1]))
    again = graded_of(("mixed", [1, 0, 0, 0]), ("hard", [0, 0, 0, 0]))
    run = Run(first, again, on_scarce="resample", max_resample=1, min_informative=0.5)
    store(run, "hard")
    batch, metrics = visit(run)
    batch, _ = make_informative(run, batch)
    assert set(batch.problem_ids) == {"mixed", "hard"}  # the second one rescued
    assert run.counts["resampled_batches"] == run.counts["rescued_groups"] == 1
    problems = ("failed", "solved", "mixed", "hard")
    assert run.right_and_seen(*problems) == [(0, 4), (4, 4), (1, 4), (0, 4)]
    assert metrics["rollout/reward_mean"] == 0.5
