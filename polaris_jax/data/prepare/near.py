"""Near duplicates: problems that say the same in nearly the same words, by MinHash.

Two problems are near duplicates if their answers and their numbers agree and they share at least
`similarity` of their 3-grams of tokens. Answers and numbers are asked for because problem sets are
full of pairs that differ in one number, or ask for another quantity, and are two problems.

64 minima of each problem's grams, in 16 bands of 4, find the candidates: a pair that shares 0.8 of
its grams meets in some band with a probability of 0.9998, one that shares 0.5 with 0.64. Each
candidate's grams are then compared exactly. A problem takes 128 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from polaris_jax.data.prepare.grams import GramHasher, text_hash

SHINGLE_TOKENS = 3
BANDS, MINIMA = 16, 4  # a band's minima
PARTNERS = 20  # of a problem in one band; a band with more is a set of copies, and they are first
_MIX = np.uint64(0xD6E8FEB86659FD93)


def band_keys(
    hasher: GramHasher, texts: Sequence[Sequence[str]], facts: Sequence[str]
) -> np.ndarray:
    """The keys by which candidates meet, uint64 [texts, BANDS].

    Args:
        hasher: hashes the grams.
        texts: tokens of each problem.
        facts: what near duplicates must agree on besides, as a text.
    """
    gram_W, starts = hasher.grams(texts, SHINGLE_TOKENS)
    rng = np.random.default_rng(0)
    multipliers = rng.integers(1 << 62, size=BANDS * MINIMA, dtype=np.uint64) * 2 + 1
    offsets = rng.integers(1 << 62, size=BANDS * MINIMA, dtype=np.uint64)
    fact_hashes = np.array([text_hash(fact) for fact in facts], np.uint64)
    keys = np.repeat(fact_hashes[:, None], BANDS, axis=1)
    for number in range(BANDS * MINIMA):
        values_W = (gram_W ^ offsets[number]) * multipliers[number]
        minima = np.minimum.reduceat(values_W, starts)
        band = number // MINIMA
        keys[:, band] = (keys[:, band] ^ minima) * _MIX
    return keys


def candidates(keys: np.ndarray) -> np.ndarray:
    """Pairs of rows with a common key, int64 [pairs, 2], the later row first, sorted.

    Args:
        keys: uint64 [rows, BANDS], rows in the order in which the first of equals is kept.
    """
    count = len(keys)
    found = [np.zeros(0, np.int64)]
    for band in range(keys.shape[1]):
        key_N = keys[:, band]
        order_N = np.argsort(key_N, kind="stable")
        sorted_N = key_N[order_N]
        position_N = np.arange(count)
        new_N = np.ones(count, bool)
        new_N[1:] = sorted_N[1:] != sorted_N[:-1]
        start_N = np.maximum.accumulate(np.where(new_N, position_N, 0))
        for k in range(PARTNERS):
            late = position_N[start_N + k < position_N]
            if not len(late):
                break
            found.append(order_N[late] * count + order_N[start_N[late] + k])
    pairs = np.unique(np.concatenate(found))
    return np.stack([pairs // max(1, count), pairs % max(1, count)], axis=1)


def shingles(tokens: Sequence[str]) -> frozenset[tuple[str, ...]]:
    """The 3-grams of a problem's tokens."""
    grams = zip(tokens, tokens[1:], tokens[2:], strict=False)
    return frozenset(grams) or frozenset([tuple(tokens)])


def similarity(a: frozenset, b: frozenset) -> float:
    """The share of grams that two problems have in common, in [0, 1]."""
    return len(a & b) / max(1, len(a | b))


def near_duplicates(
    keys: np.ndarray, grams_of: Callable[[int], frozenset], *, least_similarity: float
) -> dict[int, tuple[int, float]]:
    """The rows to leave out, each with the row that stays in its place and their similarity.

    Rows are decided in order: one is left out if it is similar to one that stays. So what stays
    depends on the rows' order alone, and nothing is left out without a similar one that stays.

    Args:
        keys: what `band_keys` returns.
        grams_of: the `shingles` of a row.
        least_similarity: from which a pair counts as near duplicates.
    """
    dropped: dict[int, tuple[int, float]] = {}
    for late, early in candidates(keys).tolist():
        if late in dropped or early in dropped:
            continue
        share = similarity(grams_of(late), grams_of(early))
        if share >= least_similarity:
            dropped[late] = (early, share)
    return dropped
