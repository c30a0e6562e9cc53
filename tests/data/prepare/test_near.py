"""Near duplicates leave if answers and numbers agree; what stays does not depend on chance."""

import itertools
import random

import numpy as np
import pytest

from polaris_jax.data.prepare.grams import GramHasher
from polaris_jax.data.prepare.near import (
    BANDS,
    band_keys,
    candidates,
    near_duplicates,
    shingles,
    similarity,
)

WORDS = [f"w{i}" for i in range(500)]


def found(texts, facts=None, least=0.8):
    keys = band_keys(GramHasher(), texts, facts or [""] * len(texts))
    sets = [shingles(text) for text in texts]
    return near_duplicates(keys, sets.__getitem__, least_similarity=least)


def changed(text, rng):
    text = list(text)
    text[rng.randrange(len(text))] = "changed"
    return text


def test_one_changed_word_is_found_and_the_first_stays():
    rng = random.Random(0)
    texts = [[rng.choice(WORDS) for _ in range(40)] for _ in range(200)]
    copies = [changed(text, rng) for text in texts]
    dropped = found(texts + copies)
    assert {late: early for late, (early, _) in dropped.items()} == {200 + i: i for i in range(200)}
    assert all(share >= 0.8 for _, share in dropped.values())


def test_other_facts_never_meet():
    text = WORDS[:40]
    assert found([text, text], ["a", "b"]) == {}
    assert found([text, text], ["a", "a"]) == {1: (0, 1.0)}


def test_nothing_leaves_for_one_that_left():
    """0 ~ 1 ~ 2, but 0 is not like 2: 1 leaves for 0, and 2 stays."""
    texts = [WORDS[:50], WORDS[6:56], WORDS[12:62]]
    sets = list(map(shingles, texts))
    assert similarity(sets[0], sets[1]) == similarity(sets[1], sets[2]) >= 0.7
    assert similarity(sets[0], sets[2]) < 0.7
    assert set(found(texts, least=0.7)) == {1}


def test_short_texts_are_compared_whole():
    assert found([["a"], ["a"], ["b"]]) == {1: (0, 1.0)}
    assert found([["a", "b"], ["a", "b"], ["b", "a"]]) == {1: (0, 1.0)}


def test_candidates_are_all_pairs_of_small_bands():
    keys = np.arange(12, dtype=np.uint64).reshape(6, 2)
    keys[[1, 3, 5], 0] = 99
    pairs = {tuple(sorted(pair)) for pair in candidates(keys).tolist()}
    assert pairs == set(itertools.combinations([1, 3, 5], 2))
    assert len(candidates(np.zeros((0, BANDS), np.uint64))) == 0


@pytest.mark.parametrize("n", [3, 13])
def test_grams_never_cross_texts(n):
    rng = random.Random(n)
    texts = [[rng.choice(WORDS) for _ in range(rng.randrange(1, 40))] for _ in range(30)]
    hasher = GramHasher()
    together, starts = hasher.grams(texts, n)
    parts = np.split(together, starts[1:])
    for text, part in zip(texts, parts, strict=True):
        assert part.tolist() == GramHasher().grams([text], n)[0].tolist()
        assert len(part) == max(1, len(text) - n + 1)


def test_hashes_are_the_same_in_every_process():
    gram_W, _ = GramHasher().grams([["what", "is", "1", "+", "1"]], 3)
    assert gram_W.tolist() == [2037823897278904049, 7878305680288541382, 6546426108700545792]
