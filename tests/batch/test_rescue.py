"""The rescue sink, rule by rule."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from polaris_jax.batch import RescueBuffer
from polaris_jax.records import Graded
from tests.support.batch.batches import random_groups, to_graded, to_groups

VISIT = {"step": 3, "stage": 1, "temperature": 1.4}


def group(rewards, *, problem_id="q", mark=0, tokens=3):
    """One group; every row's tokens name the row and the mark."""
    return {
        "id": problem_id,
        "prompt": (1, 2),
        "gold": "7",
        "rows": [
            {
                "tokens": (100 * mark + r,) * tokens,
                "logprobs": (-0.1 * (r + 1) - mark,) * tokens,
                "text": f"{mark}/{r}",
                "finish_reason": "length" if r % 2 else "stop",
                "reward": reward,
                "rescued": False,
            }
            for r, reward in enumerate(rewards)
        ],
    }


def sink_with(*groups, **when):
    sink = RescueBuffer()
    sink.update(to_graded(list(groups)), **{**VISIT, **when})
    return sink


def test_stores_the_correct_row_of_the_highest_index_with_everything_about_it():
    sink = RescueBuffer()
    assert sink.update(to_graded([group([1, 0, 1, 0], mark=5)]), **VISIT) == 1
    assert len(sink) == 1
    stored = sink.get("q")
    assert stored.token_ids == (502,) * 3
    assert stored.logprobs == (-0.1 * 3 - 5,) * 3  # not rounded to float32
    assert (stored.text, stored.finish_reason) == ("5/2", "stop")
    assert (stored.step, stored.stage, stored.temperature) == (3, 1, 1.4)
    assert sink.get("other") is None


def test_newest_correct_response_evicts_the_older_and_a_failed_visit_evicts_nothing():
    sink = sink_with(group([0, 1], mark=1))
    assert sink.update(to_graded([group([1, 0], mark=2)]), step=4, stage=1, temperature=1.0) == 1
    assert (sink.get("q").text, sink.get("q").step) == ("2/0", 4)
    assert sink.update(to_graded([group([0, 0], mark=3)]), step=5, stage=1, temperature=1.0) == 0
    assert sink.get("q").text == "2/0"


def test_a_problem_twice_in_a_batch_keeps_the_later_group():
    sink = sink_with(group([1, 0], mark=1), group([1, 0], mark=2))
    assert len(sink) == 1
    assert sink.get("q").text == "2/0"


def test_partial_reward_is_not_a_correct_response():
    assert len(sink_with(group([0.5, 0.0]))) == 0


def test_rescues_a_failed_group_with_the_stored_row_as_it_was_sampled():
    sink = sink_with(group([0, 1], mark=9))
    graded, count = sink.rescue(
        to_graded([group([0, 0])]), max_response_tokens=3, rng=np.random.default_rng(0)
    )
    assert count == 1
    r = int(np.flatnonzero(graded.rescued_PR[0])[0])
    assert graded.reward_PR.sum() == graded.reward_PR[0, r] == 1.0
    assert graded.reward_PR.dtype == np.float32
    assert graded.token_ids[0][r] == (901,) * 3
    assert graded.logprobs[0][r] == (-0.1 * 2 - 9,) * 3
    assert (graded.texts[0][r], graded.finish_reasons[0][r]) == ("9/1", "length")
    assert to_groups(graded)[0]["rows"][1 - r] == group([0, 0])["rows"][1 - r]
    assert (graded.problem_ids, graded.prompts, graded.golds) == (("q",), ((1, 2),), ("7",))


@pytest.mark.parametrize(
    ("visit", "budget"),
    [
        pytest.param(group([0, 1, 0]), 3, id="group-with-a-right-row"),
        pytest.param(group([1, 1, 1]), 3, id="all-right"),
        pytest.param(group([0, 0, 0], problem_id="new"), 3, id="empty-slot"),
        pytest.param(group([0, 0, 0]), 2, id="stored-response-over-budget"),
    ],
)
def test_leaves_every_other_group_alone_and_draws_nothing(visit, budget):
    sink = sink_with(group([1, 1, 1]))
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    given = to_graded([visit])
    graded, count = sink.rescue(given, max_response_tokens=budget, rng=rng)
    assert count == 0
    assert to_groups(graded) == to_groups(given)
    assert not graded.rescued_PR.any()
    assert rng.bit_generator.state == before


def test_stored_response_of_exactly_the_budget_fits():
    sink = sink_with(group([1], tokens=4))
    failed = to_graded([group([0, 0])])
    for budget, expected in ((3, 0), (4, 1), (5, 1)):
        rng = np.random.default_rng(0)
        assert sink.rescue(failed, max_response_tokens=budget, rng=rng)[1] == expected


def test_rescued_row_never_writes_itself_back():
    sink = sink_with(group([1, 0], mark=1))
    graded, _ = sink.rescue(
        to_graded([group([0, 0], mark=2)]), max_response_tokens=9, rng=np.random.default_rng(0)
    )
    assert sink.update(graded, step=9, stage=2, temperature=0.5) == 0
    assert (sink.get("q").step, sink.get("q").temperature) == (3, 1.4)


def test_rescued_row_is_uniform_over_the_group():
    sink = sink_with(group([1]))
    failed = to_graded([group([0] * 4)])
    rng = np.random.default_rng(0)
    draws = 4_000
    hits_R = np.zeros(4)
    for _ in range(draws):
        hits_R += sink.rescue(failed, max_response_tokens=9, rng=rng)[0].rescued_PR[0]
    # Three standard deviations of a binomial count with p = 1/4.
    assert np.abs(hits_R - draws / 4).max() < 3 * np.sqrt(draws * 3 / 16)


def test_both_visits_of_a_failed_problem_are_rescued():
    sink = sink_with(group([1, 0]))
    failed = to_graded([group([0, 0], mark=1), group([0, 0], mark=2)])
    graded, count = sink.rescue(failed, max_response_tokens=9, rng=np.random.default_rng(1))
    assert count == 2
    assert graded.rescued_PR.sum(axis=1).tolist() == [1, 1]


@pytest.mark.parametrize("kind", [tuple, list, np.array], ids=["tuples", "lists", "arrays"])
def test_takes_any_sequence_and_changes_no_input(kind):
    if kind is np.array:
        graded = Graded(
            problem_ids=np.array(["a", "b"]),
            prompts=[np.array([1, 2]), np.array([3])],
            golds=np.array(["1", "2"]),
            token_ids=[[np.array([4, 5]), np.array([6])] for _ in range(2)],
            logprobs=[[np.array([-1.0, -2.0]), np.array([-3.0])] for _ in range(2)],
            texts=np.array([["x", "y"], ["z", "w"]]),
            finish_reasons=np.array([["stop", "length"], ["stop", "stop"]]),
            reward_PR=np.array([[1.0, 0.0], [0.0, 1.0]]),
        )
    else:
        groups = [group([1, 0], problem_id="a"), group([0, 1], problem_id="b", mark=1)]
        graded = to_graded(groups, kind=kind)
    before = copy.deepcopy(graded)
    sink = RescueBuffer()
    assert sink.update(graded, **VISIT) == 2
    failed = copy.copy(graded)
    object.__setattr__(failed, "reward_PR", np.zeros((2, 2), np.float32))
    rescued, count = sink.rescue(failed, max_response_tokens=9, rng=np.random.default_rng(0))
    assert count == 2
    for p, r in np.argwhere(rescued.rescued_PR):
        stored = sink.get(str(graded.problem_ids[p]))
        assert tuple(rescued.token_ids[p][r]) == stored.token_ids
        assert type(rescued.token_ids[p][r]) is type(graded.token_ids[p][r])
    for name in vars(before):
        np.testing.assert_equal(getattr(graded, name), getattr(before, name))


def test_record_without_versions_stays_without_and_a_rescued_row_has_none():
    graded, sink = to_graded([group([0, 0])]), sink_with(group([1]))
    rescued, count = sink.rescue(graded, max_response_tokens=9, rng=np.random.default_rng(0))
    assert count == 1
    assert rescued.versions is None
    dated = dataclasses.replace(graded, versions=[[((4, 1),), ((4, 1),)]])
    rescued, _ = sink.rescue(dated, max_response_tokens=9, rng=np.random.default_rng(0))
    row = int(np.flatnonzero(rescued.rescued_PR[0])[0])
    assert (rescued.versions[0][row], rescued.versions[0][1 - row]) == ((), ((4, 1),))


def test_same_rng_same_rescue():
    sink = sink_with(*(group([1], problem_id=f"q{i}") for i in range(20)))
    failed = to_graded([group([0] * 8, problem_id=f"q{i}") for i in range(20)])
    results = [
        sink.rescue(failed, max_response_tokens=9, rng=np.random.default_rng(s))[0].rescued_PR
        for s in (5, 5, 6)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()


def test_state_is_plain_json_and_comes_back_bit_for_bit():
    rng = np.random.default_rng(0)
    sink = RescueBuffer()
    for step in range(5):
        sink.update(to_graded(random_groups(rng, solve=0.6)), step=step, stage=0, temperature=0.7)
    sink.update(to_graded([group([1], problem_id="double")]), **VISIT)  # logprobs beyond float32
    text = json.dumps(sink.state_dict())
    other = sink_with(group([1], problem_id="left over"))
    other.load_state_dict(json.loads(text))
    assert len(other) == len(sink) > 3
    assert json.dumps(other.state_dict()) == text
    third = RescueBuffer()
    third.load_state_dict(sink.array_state())
    assert json.dumps(third.state_dict()) == text
    for entry in sink.state_dict()["slots"]:
        assert other.get(entry["problem_id"]) == sink.get(entry["problem_id"])


def test_texts_are_bytes_in_a_checkpoint_and_those_of_earlier_versions_are_read():
    texts = ["", "x² 日本 \ud800", "a\n"]
    sink = RescueBuffer()
    for number, text in enumerate(texts):
        graded = dataclasses.replace(
            to_graded([group([1], problem_id=f"q{number}")]), texts=[[text]]
        )
        sink.update(graded, **VISIT)
    state = sink.array_state()
    assert all(isinstance(entry["text"], np.ndarray) for entry in state["slots"])
    former = sink.state_dict()
    for entry, text in zip(former["slots"], texts, strict=True):
        entry["text"] = text
    for kept in (state, former):
        other = RescueBuffer()
        other.load_state_dict(kept)
        assert [other.get(f"q{number}").text for number in range(3)] == texts
        assert json.dumps(other.state_dict()) == json.dumps(sink.state_dict())


def test_dropped_problems_are_forgotten_and_a_later_run_counts_from_its_own_start():
    sink = sink_with(group([1]), group([1], problem_id="r"))
    before, stored_at = copy.copy(sink), sink.stored_at("r")
    sink.drop(["q", "never seen"])
    assert "q" not in sink and "r" in sink and "q" in before
    sink.begin_anew(480)
    assert sink.stored_at("r") == stored_at - 480
    assert before.stored_at("r") == stored_at
    assert sink.get("r").text == before.get("r").text


def test_a_copy_is_a_snapshot():
    sink = sink_with(group([1], mark=1))
    before = copy.copy(sink)
    sink.update(to_graded([group([1], mark=2), group([1], problem_id="r")]), **VISIT)
    assert (len(before), before.get("q").text) == (1, "1/0")
    assert (len(sink), sink.get("q").text) == (2, "2/0")


def test_a_state_without_slots_is_refused_and_changes_nothing():
    sink = sink_with(group([1, 0]))
    with pytest.raises(ValueError, match="state holds no 'slots'"):
        sink.load_state_dict({})
    assert len(sink) == 1


def graded_from(rewards, *, correct_at, **more):
    return dataclasses.replace(to_graded([group(rewards, **more)]), correct_at=correct_at)


def test_correctness_decides_what_is_stored_and_which_group_has_failed():
    sink = RescueBuffer()
    assert sink.update(graded_from([0.7, 0.6], correct_at=0.7), **VISIT) == 1
    assert (sink.get("q").text, sink.get("q").reward) == ("0/0", np.float32(0.7))
    rng = np.random.default_rng(0)
    for rewards, expected in (([0.6, 0.0], 1), ([0.6, 0.7], 0), ([0.0, 0.0], 1)):
        failed = graded_from(rewards, correct_at=0.7)
        assert sink.rescue(failed, max_response_tokens=9, rng=rng)[1] == expected


def test_a_rescued_row_keeps_its_own_reward_and_has_no_parts():
    sink = RescueBuffer()
    sink.update(graded_from([0.75, 0.0], correct_at=0.5), **VISIT)
    failed = dataclasses.replace(
        graded_from([0.25, 0.25], correct_at=0.5), parts=[[{"a": 1.0}, {"a": 2.0}]]
    )
    rescued, _ = sink.rescue(failed, max_response_tokens=9, rng=np.random.default_rng(0))
    row = int(np.flatnonzero(rescued.rescued_PR[0])[0])
    assert (rescued.reward_PR[0, row], rescued.reward_PR[0, 1 - row]) == (0.75, 0.25)
    assert (rescued.parts[0][row], rescued.parts[0][1 - row]) == ({}, failed.parts[0][1 - row])
    assert rescued.correct_PR[0].tolist() == rescued.rescued_PR[0].tolist()


def test_a_sink_of_an_earlier_version_holds_rewards_of_1():
    state = sink_with(group([1])).state_dict()
    for entry in state["slots"]:
        del entry["reward"]
    sink = RescueBuffer()
    sink.load_state_dict(state)
    assert sink.get("q").reward == 1.0
    rescued, count = sink.rescue(
        to_graded([group([0, 0])]), max_response_tokens=9, rng=np.random.default_rng(0)
    )
    assert (count, rescued.reward_PR.sum()) == (1, 1.0)
