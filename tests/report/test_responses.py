"""The page's responses are an even, bounded sample, and say how they were trained."""

from __future__ import annotations

import json

import pytest
from etils import epath

from polaris_jax.report.responses import evenly, sample_responses
from tests.support.report.synthetic import response_row, write_rollouts


def sampled(run_dir, **options):
    options = {"groups": 8, "correct_at": 1.0, "substituted": {}} | options
    return sample_responses(epath.Path(run_dir), **options)


def rewards(*groups):
    """Groups whose responses have these rewards."""
    return [
        [response_row(f"p{at}", r, reward) for r, reward in enumerate(group)]
        for at, group in enumerate(groups)
    ]


@pytest.mark.parametrize(
    ("items", "count", "kept"),
    [
        (range(5), 9, [0, 1, 2, 3, 4]),
        (range(9), 3, [0, 4, 8]),
        (range(9), 1, [8]),
        (range(9), 0, []),
        ([3, 7, 11, 15], 2, [3, 15]),
    ],
)
def test_an_even_choice(items, count, kept):
    assert evenly(items, count) == kept


def test_steps_and_groups_at_equal_distances_and_how_many_of_how_many(tmp_path):
    for step in range(50):
        write_rollouts(tmp_path, step, rewards(*[(0.0, 1.0)] * 5))
    found = sampled(tmp_path, groups=12)
    assert [group["step"] for group in found.groups] == list(found.steps)
    assert found.steps[0] == 0 and found.steps[-1] == 49 and len(found.steps) == 12
    assert found.text(wanted=12) == (
        "12 of the 60 groups in 12 of 50 recorded steps, at equal distances."
    )
    assert "--groups=0" in sampled(tmp_path, groups=0).text(wanted=0)
    assert "no rollouts/" in sampled(tmp_path / "none").text(wanted=8)


def test_a_replaced_group_is_the_first_uninformative_one_after_the_rescue(tmp_path):
    groups = rewards((0.0, 0.0), (0.0, 1.0), (0.0, 0.0), (1.0, 1.0))
    groups[0][0] |= {"rescue_step": 0, "rescue_reward": 1.0, "rescue_text": "stored"}
    write_rollouts(tmp_path, 3, groups)
    found = sampled(tmp_path, substituted={3: 1})
    assert [group["substituted"] for group in found.groups] == [False, False, True, False]
    assert found.groups[0]["responses"][0]["rescue"] == {"text": "stored", "step": 0}
    assert not any(group["substituted"] for group in sampled(tmp_path).groups)
    assert not any(group["donor"] for group in found.groups)  # inferred


def test_rows_that_name_the_donor_are_believed(tmp_path):
    groups = rewards((0.0, 0.0), (0.0, 1.0), (0.0, 0.0), (1.0, 1.0))
    for row in groups[3]:
        row["substituted_by"] = "p1"
    write_rollouts(tmp_path, 3, groups)
    found = sampled(tmp_path, substituted={3: 1})
    assert [group["substituted"] for group in found.groups] == [False, False, False, True]
    assert [group["donor"] for group in found.groups] == [None, None, None, "p1"]


def test_right_is_what_the_run_counts_as_correct(tmp_path):
    write_rollouts(tmp_path, 0, rewards((0.4, 0.6)))
    (group,) = sampled(tmp_path, correct_at=0.5).groups
    assert [one["right"] for one in group["responses"]] == [False, True]


def test_long_texts_lose_their_middle_and_say_so(tmp_path):
    rows = rewards((0.0, 1.0))
    for row in rows[0]:
        row["text"] = "a" * 9_000 + "the end"
    write_rollouts(tmp_path, 0, rows)
    (group,) = sampled(tmp_path, chars=4_000).groups
    for one in group["responses"]:
        assert len(one["text"]) < 2_100
        assert "[... 7,007 characters ...]" in one["text"] and one["text"].endswith("the end")


def test_lines_that_cannot_be_read_are_counted(tmp_path):
    path = write_rollouts(tmp_path, 0, rewards((0.0, 1.0)))
    path.write_text("{broken\n" + path.read_text() + '{"torn')
    (tmp_path / "rollouts" / "step_000001.jsonl").mkdir()
    found = sampled(tmp_path)
    assert (len(found.groups), found.damaged) == (1, 2)
    assert "2 lines cannot be read" in found.text(wanted=8)


def test_rows_of_any_type_become_text(tmp_path):
    row = {"problem_id": 5, "question": ["a"], "gold": [1, "x"], "text": None, "reward": "high"}
    write_rollouts(tmp_path, 0, [[row | {"answer": {"a": 1}, "tokens": "many"}]])
    (group,) = sampled(tmp_path).groups
    (one,) = group["responses"]
    assert (group["id"], group["gold"], one["answer"]) == ("5", "1 or x", json.dumps({"a": 1}))
    assert (one["reward"], one["right"], one["tokens"]) == (None, False, None)
