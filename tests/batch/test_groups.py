"""Selecting and joining groups."""

import dataclasses

import numpy as np
import pytest

from polaris_jax.batch import concat_graded, select_groups
from tests.support.batch.batches import random_groups, to_graded, to_groups


def graded_of(seed, **sizes):
    return to_graded(random_groups(np.random.default_rng(seed), **sizes))


def test_selects_whole_groups_in_order_and_repeatedly():
    graded = graded_of(0, prompts=5)
    groups = to_groups(graded)
    for indices in ([], [3], [4, 0, 0, 2], np.array([1, 1]), range(5)):
        assert to_groups(select_groups(graded, indices)) == [groups[i] for i in indices]


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_outside_is_refused(index):
    with pytest.raises(IndexError, match=r"\[0, 5\)"):
        select_groups(graded_of(0, prompts=5), [index])


def test_joins_in_order_and_takes_apart_again():
    parts = [graded_of(seed, responses=3) for seed in range(3)]
    joined = concat_graded(parts)
    assert to_groups(joined) == [group for part in parts for group in to_groups(part)]
    start = len(parts[0])
    again = select_groups(joined, range(start, start + len(parts[1])))
    assert to_groups(again) == to_groups(parts[1])


def test_join_keeps_versions_or_their_absence():
    bare = graded_of(0, responses=3)
    versions = [[((1, 2),)] * 3] * len(bare)
    assert concat_graded([bare, bare]).versions is None
    dated = dataclasses.replace(bare, versions=versions)
    assert concat_graded([dated, dated]).versions == versions * 2
    with pytest.raises(ValueError, match="versions is given in some parts only"):
        concat_graded([bare, dated])


def test_join_refuses_groups_of_two_sizes_and_no_part():
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        concat_graded([graded_of(0, responses=2), graded_of(0, responses=3)])
    with pytest.raises(ValueError, match="at least one"):
        concat_graded([])


def test_parts_are_joined_even_if_a_batch_has_none():
    bare = graded_of(0, prompts=1, responses=2)
    given = dataclasses.replace(graded_of(1, prompts=1, responses=2), parts=[[{"a": 1.0}, {}]])
    assert concat_graded([bare, bare]).parts is None
    joined = concat_graded([bare, given, bare])
    assert [list(group) for group in joined.parts] == [[{}, {}], [{"a": 1.0}, {}], [{}, {}]]
    assert [list(group) for group in select_groups(joined, [1]).parts] == [[{"a": 1.0}, {}]]
