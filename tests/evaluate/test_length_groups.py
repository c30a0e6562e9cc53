"""Length groups part the responses, edges included where the names say so."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_jax.evaluate.length_groups import length_groups
from tests.tolerances import CLOSED_FORM_ATOL


def test_the_blog_groups_at_their_edges():
    K = 1024
    length_PR = np.array([[1, 16 * K - 1, 16 * K], [32 * K, 32 * K + 1, 90_000]])
    reward_PR = np.array([[1, 0, 1], [0, 1, 1]], np.float32)
    groups = length_groups(length_PR, reward_PR)
    assert [(g.name, g.responses, g.accuracy) for g in groups] == [
        ("<16K", 2, 0.5),
        ("16K-32K", 2, 0.5),
        (">32K", 2, 1.0),
    ]


def test_empty_group_has_no_accuracy():
    first, last = length_groups(np.array([[5, 10]]), np.array([[0.0, 1.0]]), edges=(10,))
    assert (first.name, first.responses, first.accuracy) == ("<=10", 2, 0.5)
    assert (last.name, last.responses, last.accuracy) == (">10", 0, None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=5, unique=True), st.integers(0, 9999))
def test_groups_part_the_responses_and_average_to_the_score(edges, seed):
    rng = np.random.default_rng(seed)
    length_PR = rng.integers(1, 60, (7, 4))
    reward_PR = rng.integers(0, 2, (7, 4)).astype(np.float32)
    groups = length_groups(length_PR, reward_PR, edges=sorted(edges))
    assert len(groups) == len(edges) + 1
    assert sum(g.responses for g in groups) == 28
    total = sum(g.share * g.accuracy for g in groups if g.accuracy is not None)
    assert total == pytest.approx(reward_PR.mean(), abs=CLOSED_FORM_ATOL)


@pytest.mark.parametrize("edges", [(), (2, 1), (1, 1)])
def test_bad_edges(edges):
    with pytest.raises(ValueError, match="length_edges"):
        length_groups(np.ones((1, 1)), np.ones((1, 1)), edges=edges)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        length_groups(np.ones((1, 2)), np.ones((2, 1)))
