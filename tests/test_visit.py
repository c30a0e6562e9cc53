"""What a step's statistics say is what the policy sampled, whatever is rescued or substituted."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from polaris_jax import step
from polaris_jax.assemble import Parts
from polaris_jax.batch import Substitution, no_substitution
from polaris_jax.config import BatchSection, RunConfig
from polaris_jax.records import Graded, Group
from polaris_jax.state import RunState
from polaris_jax.system.signals import StopRequest
from tests.support.parts import make_parts, make_state, stage_at

STAGE = stage_at(1, 2, temperature=1.4)
NEVER = StopRequest()
STORED_STEP, STORED_TEMPERATURE = 3, 0.2
# The four of a failed group differ in length and in repetition, so that to lose any one shows.
LENGTHS = (2, 3, 5, 9)
TEXTS = ("a b c d", "e e e e e e", "f g h i j j j j j", "k k k k k k k k")
DISTINCT = (1 + 1 + 5 + 1) / (1 + 3 + 6 + 5)  # 4-grams, which never cross responses
STORED_TOKENS, STORED_LOGPROBS = (7,) * 13, (-2.0,) * 13


def graded_of(*groups: tuple[str, list[int]]) -> Graded:
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
    )


class Drawn:
    """A run whose batches are given: what is drawn, sampled and graded next."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *batches: Graded, **batch: Any) -> None:
        self.parts: Parts = make_parts(RunConfig(batch=BatchSection(**batch)))
        self.state: RunState = make_state(step=7, stage=STAGE)
        left = list(batches)
        groups = {0: Group("p", (1,), "?", "1", draw=0, epoch=0)}
        monkeypatch.setattr(step, "draw", lambda parts, state, *, attempt: (state, []))
        monkeypatch.setattr(step, "sample", lambda parts, state, _, *, stop: (state, groups, None))
        monkeypatch.setattr(step, "grade", lambda *_: left.pop(0))

    def visit(self) -> tuple[Graded, dict[str, Any]]:
        self.state, graded, metrics = step.collect_rollouts(self.parts, self.state, stop=NEVER)
        return graded, metrics

    def make_informative(self, graded: Graded) -> tuple[Graded, Substitution]:
        before = {"resampled_batches": self.state.counts.get("resampled_batches", 0)}
        self.state, graded, place_P = step.resample_if_scarce(
            self.parts, self.state, graded, stop=NEVER
        )
        graded, swapped = step.substitute(self.parts, self.state, graded, before=before)
        self.donors = swapped.donors(place_P)
        return graded, swapped

    @property
    def written(self) -> list[Graded]:
        return self.parts.outputs.rollouts  # pyright: ignore

    def right_and_seen(self, *problem_ids: str) -> list[tuple[int, int]]:
        visits = dict(self.state.accuracy.state_dict()["visits"])
        counts = {i: (right, seen) for i, right, seen, *_ in visits.get(STAGE.stage, [])}
        return [counts.get(i, (0, 0)) for i in problem_ids]


def store(run: Drawn, problem_id: str) -> None:
    """A correct response of an earlier step: long, cold and unlike the others."""
    earlier = graded_of((problem_id, [0, 1]))
    earlier = dataclasses.replace(
        earlier,
        token_ids=[[(5,), STORED_TOKENS]],
        logprobs=[[(-1.0,), STORED_LOGPROBS]],
        texts=[["x", "z z z z z z z z z z"]],
    )
    run.state.sink.update(earlier, step=STORED_STEP, stage=0, temperature=STORED_TEMPERATURE)


def test_a_rescue_reaches_the_batch_and_no_statistic(monkeypatch):
    run = Drawn(monkeypatch, graded_of(("failed", [0, 0, 0, 0])))
    store(run, "failed")
    batch, metrics = run.visit()
    # The batch has it,
    assert (
        batch.reward_PR.sum() == batch.rescued_PR.sum() == run.state.counts["rescued_groups"] == 1
    )
    (row,) = np.flatnonzero(batch.rescued_PR[0])
    assert batch.token_ids[0][row] == STORED_TOKENS
    assert batch.logprobs[0][row] == STORED_LOGPROBS
    # accuracy, lengths and metrics are those of the four that were sampled,
    assert run.right_and_seen("failed") == [(0, 4)]
    assert run.state.lengths.expected(["failed"], max_response_tokens=99) == [np.mean(LENGTHS)]
    assert run.state.counts["sampled_tokens"] == sum(LENGTHS)
    assert metrics["rollout/reward_mean"] == metrics["rollout/informative_share"] == 0
    assert metrics["rollout/mean_length"] == metrics["rollout/mean_length_incorrect"]
    assert metrics["rollout/mean_length"] == np.mean(LENGTHS)
    assert metrics["rollout/mean_length_correct"] is None
    assert metrics["rollout/temperature"] == STAGE.temperature
    assert metrics["rollout/diversity"] == pytest.approx(DISTINCT)
    # and so are the responses on the disk; what was stored is not stored anew.
    assert not run.written[0].rescued_PR.any()
    assert run.state.sink.get("failed").step == STORED_STEP


def test_without_rescue_the_statistics_are_the_same(monkeypatch):
    metrics, states = [], []
    for rescue in (True, False):
        run = Drawn(monkeypatch, graded_of(("failed", [0, 0, 0, 0])), rescue=rescue)
        store(run, "failed")
        metrics.append(run.visit()[1])
        states.append(run.state)
    assert metrics[0] == metrics[1]
    assert states[0].accuracy.state_dict() == states[1].accuracy.state_dict()
    assert [state.counts.get("rescued_groups") for state in states] == [1, None]


def test_a_substituted_problem_is_counted_and_its_donor_once(monkeypatch):
    groups = ("failed", [0, 0, 0, 0]), ("solved", [1, 1, 1, 1]), ("mixed", [1, 0, 0, 1])
    run = Drawn(monkeypatch, graded_of(*groups))
    batch, metrics = run.visit()
    batch, swapped = run.make_informative(batch)
    assert list(batch.problem_ids) == ["mixed"] * 3
    assert (swapped.replaced, swapped.reused) == (2, 1)
    assert run.donors == {0: 2, 1: 2}
    assert run.right_and_seen("failed", "solved", "mixed") == [(0, 4), (4, 4), (2, 4)]
    assert metrics["rollout/reward_mean"] == 0.5
    assert metrics["rollout/informative_share"] == pytest.approx(1 / 3)


def test_what_is_drawn_again_is_counted_once_and_leaves_the_steps_metrics(monkeypatch):
    first = graded_of(("failed", [0, 0, 0, 0]), ("solved", [1, 1, 1, 1]))
    again = graded_of(("mixed", [1, 0, 0, 0]), ("hard", [0, 0, 0, 0]))
    run = Drawn(
        monkeypatch, first, again, on_scarce="resample", max_resample=1, min_informative=0.5
    )
    store(run, "hard")
    batch, metrics = run.visit()
    batch, _ = run.make_informative(batch)
    assert set(batch.problem_ids) == {"mixed", "hard"}  # the second one rescued
    assert run.donors == {}
    assert run.state.counts["resampled_batches"] == run.state.counts["rescued_groups"] == 1
    problems = ("failed", "solved", "mixed", "hard")
    assert run.right_and_seen(*problems) == [(0, 4), (4, 4), (1, 4), (0, 4)]
    assert metrics["rollout/reward_mean"] == 0.5


def test_a_donor_is_named_by_its_place_among_all_groups_of_the_step(monkeypatch):
    first = graded_of(("failed", [0, 0, 0, 0]), ("solved", [1, 1, 1, 1]), ("poor", [0, 0, 0, 0]))
    again = graded_of(("barren", [0, 0, 0, 0]), ("mixed", [1, 0, 0, 0]), ("hard", [0, 0, 0, 0]))
    run = Drawn(monkeypatch, first, again, on_scarce="resample", max_resample=1)
    batch, swapped = run.make_informative(run.visit()[0])
    assert list(batch.problem_ids) == ["mixed"] * 3 and swapped.replaced == 2
    assert run.donors == {0: 4, 1: 4}  # mixed stands in for failed and solved; poor was dropped


def test_dynamic_sampling_draws_until_every_group_informs_and_copies_nothing(monkeypatch):
    first = graded_of(("failed", [0, 0, 0, 0]), ("mixed", [1, 0, 0, 1]))
    barren = graded_of(("solved", [1, 1, 1, 1]), ("hard", [0, 0, 0, 0]))
    last = graded_of(("other", [1, 0, 0, 0]), ("third", [0, 1, 0, 0]))
    fields = {"on_scarce": "resample", "max_resample": 9, "min_informative": 1.0}
    run = Drawn(monkeypatch, first, barren, last, substitute=False, **fields)
    batch, metrics = run.visit()
    batch, swapped = run.make_informative(batch)
    assert list(batch.problem_ids) == ["mixed", "other"]
    assert (swapped.action, swapped.replaced) == ("train", 0)
    assert run.state.counts["resampled_batches"] == 2
    # What was drawn in vain was sampled all the same, and the metrics are the first batch's.
    assert run.state.counts["sampled_tokens"] == 6 * sum(LENGTHS)
    assert metrics["rollout/informative_share"] == 0.5


def test_dynamic_sampling_is_bounded(monkeypatch):
    barren = [graded_of(("hard", [0, 0, 0, 0])) for _ in range(4)]
    fields = {"on_scarce": "resample", "max_resample": 3, "min_informative": 1.0}
    run = Drawn(monkeypatch, *barren, substitute=False, **fields)
    _, swapped = run.make_informative(run.visit()[0])
    assert run.state.counts["resampled_batches"] == 3
    assert swapped.action == "none"


def test_a_scarce_batch_can_be_skipped_without_substitution(monkeypatch):
    scarce = graded_of(("mixed", [1, 0]), ("a", [0, 0]), ("b", [0, 0]), ("c", [1, 1]))
    run = Drawn(monkeypatch, scarce, substitute=False, on_scarce="skip")
    assert run.make_informative(run.visit()[0])[1].action == "skip"


def test_the_age_of_what_rescues(monkeypatch):
    run = Drawn(monkeypatch, graded_of(("failed", [0, 0]), ("mixed", [1, 0])))
    store(run, "failed")
    batch, _ = run.visit()
    state, metrics = step.count_batch(run.state, no_substitution(batch), updated=True, before={})
    assert metrics["batch/rescued_groups"] == 1
    assert metrics["batch/rescued_age"] == run.state.step - STORED_STEP
    later = step.count_batch(state, no_substitution(batch), updated=True, before=state.counts)[1]
    assert later["batch/rescued_age"] is None
