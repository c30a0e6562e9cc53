"""The rollout metrics: names, values, empty classes, and blindness to rescued rows."""

import dataclasses

import numpy as np
import pytest

from polaris_jax.batch import RescueBuffer
from polaris_jax.metrics.rollout_stats import part_metrics, rollout_metrics, spread_metrics
from polaris_jax.records import Graded


def graded_of(reward_PR, *, lengths=None, reasons=None, texts=None):
    reward_PR = np.array(reward_PR, np.float32)
    prompts, responses = reward_PR.shape
    lengths = [[2] * responses] * prompts if lengths is None else lengths
    return Graded(
        problem_ids=tuple(f"q{p}" for p in range(prompts)),
        prompts=((1,),) * prompts,
        golds=("1",) * prompts,
        token_ids=tuple(tuple((5,) * n for n in group) for group in lengths),
        logprobs=tuple(tuple((-1.0,) * n for n in group) for group in lengths),
        texts=texts or tuple(("a b c d",) * responses for _ in range(prompts)),
        finish_reasons=reasons or tuple(("stop",) * responses for _ in range(prompts)),
        reward_PR=reward_PR,
    )


def test_names_and_values_by_hand():
    graded = graded_of(
        [[1, 0], [0, 0], [1, 1]],
        lengths=[[10, 20], [30, 40], [50, 60]],
        reasons=(("stop", "length"), ("stop", "length"), ("length", "stop")),
        texts=(("a b c d", "a b c d"), ("a b c d", "e f g h"), ("", "")),
    )
    assert rollout_metrics(graded, temperature=1.4, max_response_tokens=60) == {
        "rollout/reward_mean": 0.5,
        "rollout/informative_share": pytest.approx(1 / 3),
        "rollout/mean_length": 35.0,
        "rollout/mean_length_correct": 40.0,
        "rollout/mean_length_incorrect": 30.0,
        "rollout/clip_ratio": 0.5,
        "rollout/clip_ratio_correct": pytest.approx(1 / 3),
        "rollout/clip_ratio_incorrect": pytest.approx(2 / 3),
        "rollout/temperature": 1.4,
        "rollout/diversity": pytest.approx((0.5 + 1.0 + 0.0) / 3),
        "rollout/max_response_tokens": 60,
    }


def test_an_empty_class_is_none_and_never_nan():
    metrics = rollout_metrics(graded_of([[1, 1]]), temperature=1.0)
    assert metrics["rollout/mean_length_incorrect"] is None
    assert metrics["rollout/clip_ratio_incorrect"] is None
    assert "rollout/max_response_tokens" not in metrics
    empty = rollout_metrics(graded_of(np.zeros((0, 4))), temperature=1.0)
    assert empty.pop("rollout/temperature") == 1.0
    assert set(empty.values()) == {None}


def test_values_are_plain_numbers():
    metrics = rollout_metrics(graded_of([[1, 0]]), temperature=np.float32(1.0))
    assert {type(value) for value in metrics.values()} == {float}


def test_a_stop_on_the_last_allowed_token_is_not_clipped():
    graded = graded_of([[1, 0]], lengths=[[4, 4]], reasons=(("stop", "length"),))
    assert rollout_metrics(graded, temperature=1.0, max_response_tokens=4)[
        "rollout/clip_ratio"
    ] == pytest.approx(0.5)


def test_a_rescued_row_never_enters():
    own = graded_of([[0, 0], [1, 0]], lengths=[[2, 4], [6, 8]])
    sink = RescueBuffer()
    sink.update(
        graded_of([[0, 1]], lengths=[[9, 9]], texts=(("x", "e e e e e e"),)),
        step=0,
        stage=0,
        temperature=0.1,
    )
    rescued, count = sink.rescue(own, max_response_tokens=9, rng=np.random.default_rng(0))
    assert count == 1
    (row,) = np.flatnonzero(rescued.rescued_PR[0])
    kept = 1 - row
    metrics = rollout_metrics(rescued, temperature=1.4)
    assert metrics["rollout/reward_mean"] == pytest.approx(1 / 3)
    assert metrics["rollout/informative_share"] == 0.5
    assert metrics["rollout/mean_length"] == pytest.approx(([2, 4][kept] + 6 + 8) / 3)
    assert metrics["rollout/temperature"] == 1.4
    # The stored text repeats one 4-gram, which would show in the first group.
    bare = dataclasses.replace(rescued, rescued_PR=np.zeros((2, 2), bool))
    assert metrics["rollout/diversity"] == pytest.approx((1.0 + 0.5) / 2)
    assert rollout_metrics(bare, temperature=1.4)["rollout/diversity"] != pytest.approx(0.75)


def test_lengths_of_correct_responses_follow_correct_at():
    graded = graded_of([[0.5, 0.25]], lengths=[[10, 20]])
    assert rollout_metrics(graded, temperature=1.0)["rollout/mean_length_correct"] is None
    lower = rollout_metrics(dataclasses.replace(graded, correct_at=0.5), temperature=1.0)
    assert lower["rollout/mean_length_correct"] == 10.0
    assert lower["rollout/mean_length_incorrect"] == 20.0
    assert lower["rollout/reward_mean"] == 0.375


def test_parts_are_means_over_the_responses_that_have_them():
    graded = graded_of([[1, 0], [0, 0]])
    assert part_metrics(graded) == {}
    parts = [[{"a": 1.0, "never": None}, {"a": 2.0}], [{"a": None}, {}]]
    metrics = part_metrics(dataclasses.replace(graded, parts=parts))
    assert {name: (mean.sum, mean.weight) for name, mean in metrics.items()} == {
        "reward/a": (3.0, 2),
        "reward/never": (0.0, 0),
    }
    assert [mean.value for mean in metrics.values()] == [1.5, None]


def test_copies_lower_the_effective_number_of_groups():
    mixed, alone = graded_of([[1, 0], [0, 0], [1, 0]]), graded_of([[0, 0], [1, 1]])
    named = dataclasses.replace(mixed, problem_ids=("a", "b", "c"))
    assert spread_metrics(named, trained=True) == {
        "batch/distinct_problems": 2,
        "batch/effective_groups": 2.0,
    }
    copied = dataclasses.replace(graded_of([[1, 0]] * 4), problem_ids=("a", "a", "a", "c"))
    found = spread_metrics(copied, trained=True)
    assert found["batch/distinct_problems"] == 2
    assert found["batch/effective_groups"] == pytest.approx((3 + 1) ** 2 / (3**2 + 1))
    for batch, trained in ((alone, True), (copied, False)):
        assert spread_metrics(batch, trained=trained) == {
            "batch/distinct_problems": 0,
            "batch/effective_groups": None,
        }
