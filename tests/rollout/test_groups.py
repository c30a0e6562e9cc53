"""Counting, settling and describing groups in flight."""

import pytest

from polaris_jax.records import Response
from polaris_jax.rollout.groups import (
    Group,
    age_metrics,
    carried_metrics,
    leading_stale,
    most_in_flight,
    prompts_of,
    settle,
)


def group(name: str, *responses: Response) -> Group:
    return Group(name, (1, 2), "?", ["1", 2], 0, 3, 5, 0, responses)


def response(*versions: tuple[int, int], reason="stop") -> Response:
    count = sum(tokens for _, tokens in versions)
    return Response((1,) * count, (-1.0,) * count, reason, versions=versions)


@pytest.mark.parametrize(
    ("prompts", "share", "expected"),
    [(128, 0.8, 160), (6, 0.6, 10), (7, 0.7, 10), (9, 0.9, 10), (5, 0.9, 6), (4, 1.0, 4)],
)
def test_a_step_begins_so_many_that_the_share_of_them_is_its_batch(prompts, share, expected):
    assert most_in_flight(prompts, share) == expected
    assert expected * share >= prompts - 1e-9


def test_the_oldest_whole_groups_are_the_batch_and_the_rest_keeps_its_order():
    whole, left = response((0, 2)), response((0, 1), reason="unfinished")
    groups = [
        group("a", whole, left),
        group("b", whole, whole),
        group("c", whole),
        group("d", left),
        group("e", whole),
    ]
    chosen, rest = settle(groups, 2)
    assert chosen == [1, 2]
    assert [g.problem_id for g in rest] == ["a", "d", "e"]
    assert prompts_of([groups[i] for i in chosen]).problem_ids == ("b", "c")


def test_lag_is_counted_by_token():
    versions = [[((1, 3), (3, 1)), ((3, 4),)], [((2, 2),), ()]]
    carried = [
        group("a", response((3, 5)), response((2, 1), (3, 1), reason="unfinished")),
        group("b", response(reason="unfinished"), response(reason="unfinished")),
    ]
    assert age_metrics(versions, version=3) == {
        "rollout/stale_share": 5 / 10,
        "rollout/lag_mean": (3 * 2 + 2 * 1) / 10,
        "rollout/lag_max": 2,
    }
    assert carried_metrics(carried) == {
        "rollout/carried_groups": 2,
        "rollout/carried_responses": 3,
        "rollout/carried_tokens": 7,
    }
    assert [leading_stale(v, 3) for group in versions for v in group] == [3, 0, 2, 0]


def test_a_batch_without_a_token_has_no_lag():
    metrics = age_metrics([[()]], version=1)
    assert metrics["rollout/lag_max"] is metrics["rollout/stale_share"] is None
