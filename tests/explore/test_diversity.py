"""Distinct n-grams: counted by hand, and by properties."""

import numpy as np
import pytest

from polaris_jax.explore import distinct_ngrams, diversity_stderr
from polaris_jax.explore.diversity import group_diversities


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        pytest.param([["a b c d", "a b c d"]], 1 / 2, id="copy"),
        pytest.param([["a b c d e"]], 1.0, id="all-distinct"),
        pytest.param([["a a a a a"]], 1 / 2, id="repeats-inside-one-response"),
        pytest.param([["a b c", ""]], 0.0, id="too-short"),
        pytest.param([["a b", "c d"]], 0.0, id="never-across-responses"),
        pytest.param([[" a\tb\nc  d "]], 1.0, id="any-whitespace"),
        pytest.param([["a b c d", "a b c d"], ["a b c d"]], 3 / 4, id="mean-over-problems"),
        pytest.param([["a b c d e", "a b c d e"], ["x"]], 1 / 4, id="problem-without-any-counts-0"),
        pytest.param([], 0.0, id="no-problem"),
    ],
)
def test_distinct_ngrams_by_hand(groups, expected):
    assert distinct_ngrams(groups) == expected


def test_order_of_responses_and_problems_does_not_matter():
    rng = np.random.default_rng(0)
    groups = [
        [" ".join(rng.choice(list("abc"), rng.integers(0, 12))) for _ in range(4)] for _ in range(5)
    ]
    shuffled = [[group[i] for i in rng.permutation(4)] for group in groups]
    order = rng.permutation(5)
    for n in (1, 2, 4):
        value = distinct_ngrams(groups, n)
        assert 0.0 <= value <= 1.0
        np.testing.assert_array_equal(
            group_diversities([shuffled[i] for i in order], n), group_diversities(groups, n)[order]
        )


def test_more_copies_lower_diversity():
    values = [distinct_ngrams([["a b c d e f"] * copies]) for copies in (1, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == 1 / 8


def test_an_ngram_has_words():
    with pytest.raises(ValueError, match="n=0"):
        distinct_ngrams([["a"]], 0)


def test_a_flat_list_of_texts_is_no_list_of_problems():
    with pytest.raises(ValueError, match=r"groups\[1\]='a b c d e': .*texts of one problem in a"):
        distinct_ngrams([["a b c d e"], "a b c d e"])


def test_the_standard_error_is_the_spread_of_sampling_again():
    rng = np.random.default_rng(0)
    words = np.array(list("abcdef"))

    def sample():
        return [[" ".join(words[rng.integers(0, 6, 30)]) for _ in range(12)] for _ in range(6)]

    groups = [sample() for _ in range(60)]
    spread = np.std([distinct_ngrams(group) for group in groups], ddof=1)
    found = np.mean([diversity_stderr(group) for group in groups[:20]])
    assert 0.7 * spread < found < 1.6 * spread


def test_no_spread_is_0_and_too_few_responses_have_none():
    assert diversity_stderr([["a b c d e"] * 4]) == pytest.approx(0.0)
    assert diversity_stderr([["a b c d e", "short"]]) is None
    assert diversity_stderr([["a b c d e"], []]) is None
