"""Lexical diversity of rollouts: distinct n-grams."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Sequence

import numpy as np

NGRAM = 4


def distinct_ngrams(groups: Sequence[Sequence[str]], n: int = NGRAM) -> float:
    """Mean over problems of distinct / all n-grams among a problem's responses, in [0, 1].

    Words are what whitespace separates; an n-gram never crosses two responses. It depends on the
    number of responses, on their length and on the problems: compare it only where these agree.

    Args:
        groups: [P][R] response texts; R may differ between problems.
        n: words of an n-gram.

    Returns:
        The mean; a problem without any n-gram counts 0, and no problem at all gives 0.

    Raises:
        ValueError: n < 1, or a text in place of a problem's list of texts.

    Source: Li et al. 2016 (arXiv:1510.03055); POLARIS, "Diversity-based Rollout Sampling", n = 4.
    """
    diversity_P = group_diversities(groups, n)
    return float(diversity_P.mean()) if len(diversity_P) else 0.0


def group_diversities(groups: Sequence[Sequence[str]], n: int = NGRAM) -> np.ndarray:
    """Distinct / all n-grams of each problem, float64 [P]; 0 for a problem without any.

    Raises:
        ValueError: n < 1, or a text in place of a problem's list of texts.
    """
    if n < 1:
        raise ValueError(f"n={n}: an n-gram has at least 1 word")
    for index, texts in enumerate(groups):
        if isinstance(texts, str):  # a sequence too, of characters
            raise ValueError(
                f"groups[{index}]={texts[:40]!r}: expected a problem's list of response texts; put "
                "the texts of one problem in a list"
            )
    return np.array([_group_diversity(texts, n) for texts in groups], np.float64)


def diversity_stderr(groups: Sequence[Sequence[str]], n: int = NGRAM) -> float | None:
    """Standard error of `distinct_ngrams`, by leaving each response out of its problem in turn.

    It is that of sampling the same problems again: the spread between problems is no part of it, as
    in the standard error of a probe's accuracy.

    Args:
        groups: [P][R] response texts.
        n: words of an n-gram.

    Returns:
        The standard error; None if no problem has two responses with an n-gram.

    Source: the jackknife, Efron and Stein 1981, "The jackknife estimate of variance".
    """
    variances = [_jackknife(texts, n) for texts in groups]
    known = [variance for variance in variances if variance is not None]
    return math.sqrt(math.fsum(known)) / len(groups) if known else None


def _jackknife(texts: Sequence[str], n: int) -> float | None:
    """The variance of a problem's diversity; None with fewer than two responses that have any."""
    grams_R = [list(_ngrams(text, n)) for text in texts]
    total = sum(map(len, grams_R))
    holders: collections.Counter[tuple[str, ...]] = collections.Counter()
    for grams in grams_R:
        holders.update(set(grams))
    without = [
        (len(holders) - sum(holders[gram] == 1 for gram in set(grams))) / (total - len(grams))
        for grams in grams_R
        if total > len(grams)
    ]
    if len(without) < 2:
        return None
    values = np.array(without)
    return float((len(values) - 1) / len(values) * np.square(values - values.mean()).sum())


def _ngrams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    words = text.split()
    return zip(*(words[k:] for k in range(n)), strict=False)


def _group_diversity(texts: Sequence[str], n: int) -> float:
    distinct: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        grams = list(_ngrams(text, n))
        distinct.update(grams)
        total += len(grams)
    return len(distinct) / total if total else 0.0
