"""maj@k against a count of every subset."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_jax.evaluate.votes import ballots, chance_of_majority, majority_scores
from tests.tolerances import CLOSED_FORM_ATOL

RIGHT = "right"


def by_subsets(answers: list[str | None], k: int) -> float:
    """Every subset of k answers, its commonest answer, ties shared."""
    scores = []
    for subset in itertools.combinations(answers, k):
        votes = Counter(answer for answer in subset if answer is not None)
        best = [a for a, count in votes.items() if count == max(votes.values())]
        scores.append((RIGHT in best) / max(1, len(best)))
    return sum(scores) / len(scores)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([RIGHT, "2", "3", "4", None]), min_size=1, max_size=8), st.data())
def test_it_is_the_share_of_subsets_that_vote_right(answers, data):
    k = data.draw(st.integers(1, len(answers)))
    votes = ballots(answers, [answer == RIGHT for answer in answers])
    assert votes is not None
    expected = by_subsets(answers, k)
    assert chance_of_majority(*votes, k) == pytest.approx(expected, abs=CLOSED_FORM_ATOL)


def test_at_one_it_is_the_accuracy_and_at_n_one_vote():
    correct_PR = np.array([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], bool)
    answers_PR = [["7", "7.0", "8", "9", None], ["1", "2", "2", None, "3"]]
    one, five = (majority_scores(answers_PR, correct_PR, k) for k in (1, 5))
    assert one is not None and five is not None
    assert one == pytest.approx(correct_PR.mean(axis=1), abs=CLOSED_FORM_ATOL)
    assert five.tolist() == [1.0, 0.0]


def test_wrong_answers_count_together_if_only_their_spelling_differs():
    answers = [r"\frac{1}{2}", r"\frac {1} {2}.", " 3 ", "3", "0.5", "1, 2, ..."]
    assert ballots(answers, [False] * 6) == (0, (2, 2, 1, 1), 0)


def test_nothing_is_known_of_answers_that_a_function_of_ones_own_found_right():
    assert ballots([None, None], [True, False]) is None
    assert majority_scores([[None, None]], np.array([[1, 0]]), 1) is None
    assert ballots([None, None], [False, False]) == (0, (), 2)


@pytest.mark.parametrize("k", [0, 4])
def test_k_must_lie_within_the_responses(k):
    with pytest.raises(ValueError, match=rf"k={k}: maj@k needs 1 <= k <= 3"):
        chance_of_majority(1, (1,), 1, k)
