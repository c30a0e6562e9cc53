"""Counting, settling and describing groups in flight."""

import dataclasses

import numpy as np
import pytest

from polaris_jax.batch.packing import stale_tokens
from polaris_jax.metrics.rollout_stats import age_metrics, carried_metrics
from polaris_jax.records import Graded, Group, Response
from polaris_jax.rollout.groups import groups_from_host as groups_from
from polaris_jax.rollout.groups import groups_to_host as array_state
from polaris_jax.rollout.groups import most_in_flight, settle


def group(name: str, *responses: Response) -> Group:
    return Group(name, (1, 2), "?", ["1", 2], draw=0, epoch=3, responses=responses)


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
    batch, rest = settle(groups, 2)
    assert [(i, g.problem_id) for i, g in batch.items()] == [(1, "b"), (2, "c")]
    assert [g.problem_id for g in rest] == ["a", "d", "e"]


def tokens_before(versions: list, version: int):
    rows = [[() for _ in group] for group in versions]
    graded = Graded(
        problem_ids=["a", "b"],
        prompts=[(1,)] * 2,
        golds=["1"] * 2,
        token_ids=rows,
        logprobs=rows,
        texts=[[""] * 2] * 2,
        finish_reasons=[["stop"] * 2] * 2,
        reward_PR=np.zeros((2, 2)),
        versions=versions,
    )
    assert stale_tokens(dataclasses.replace(graded, versions=None), version) is None
    return stale_tokens(graded, version)


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
    assert tokens_before(versions, 3).tolist() == [[3, 0], [2, 0]]


def test_a_batch_without_a_token_has_no_lag():
    metrics = age_metrics([[()]], version=1)
    assert metrics["rollout/lag_max"] is metrics["rollout/stale_share"] is None


def test_a_response_of_an_earlier_version_ends_at_its_first_stop_token():
    tokens = (4, 9, 5, 9)
    versions = ((0, 1), (2, 3))
    long = Response(tokens, (-1.0, -2.0, -3.0, -4.0), "unfinished", versions=versions)
    ended = Response((4, 9), (-1.0, -2.0), "stop", versions=((0, 2),))
    (restored,) = groups_from(array_state([group("a", long, ended)]), (9,))
    assert restored.responses[0] == Response((4, 9), (-1.0, -2.0), "stop")
    assert restored.responses[0].versions == ((0, 1), (2, 1))
    assert restored.responses[1] == ended and restored.complete
    (restored,) = groups_from(array_state([group("a", long, ended)]), (7,))
    assert restored.responses[0] == long and not restored.complete


def test_extra_columns_of_a_carried_group_survive_a_checkpoint():
    plain = group("a", response((0, 2)))
    extra = dataclasses.replace(
        plain, problem_id="b", extra={"tests": [1, {"x": "y"}]}, opening="<think></think>"
    )
    host = array_state([plain, extra])
    assert (
        not {"extra", "opening"} & host[0].keys()
    )  # a run without extra columns saves what it always did
    assert groups_from(host, ()) == (plain, extra)
