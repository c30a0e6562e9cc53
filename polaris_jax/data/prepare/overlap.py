"""Problems of benchmarks among training rows: by 13-grams of tokens, and by complete short texts.

One common 13-gram is no proof: "where $m$ and $n$ are relatively prime positive integers. Find
$m+n$" ends a hundred problems that have nothing else in common. So a row is left out if it shares
at least half of the 13-grams of the shorter of the two texts. That finds a benchmark problem inside
a longer row, and one whose last sentences are cut. Texts are compared by their tokens (`tokens`),
so white space, dollar signs and other macros make no difference.

A text of fewer than 13 tokens has no 13-gram. Such a row is found if it is the first sentences of a
benchmark's problem, and such a problem if it has 8 tokens and the row begins with it.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from polaris_jax.data.prepare.grams import GramHasher
from polaris_jax.data.prepare.tokens import math_tokens
from polaris_jax.records import Problem

GRAM_TOKENS = 13
LEAST_SHARE = 0.5
LEAST_TOKENS = 8  # of a problem that a row begins with
LEAST_SENTENCE_TOKENS = 3  # of first sentences
MOST_BEGIN_CHARS = 400  # in which 12 tokens end
_SENTENCE_END = re.compile(r"[.?!](?=\s|$)")


@dataclasses.dataclass(frozen=True)
class Hit:
    """A row that holds a benchmark's problem.

    Attributes:
        benchmark: name of the benchmark.
        problem: the problem there.
        share: common 13-grams as a share of the shorter text's, in [0, 1].
    """

    benchmark: str
    problem: Problem
    share: float


class BenchmarkIndex:
    """Finds rows that hold problems of benchmarks.

    Args:
        benchmarks: problems by the name of their benchmark.
    """

    def __init__(self, benchmarks: Sequence[tuple[str, Sequence[Problem]]]) -> None:
        self._problems = [(name, p) for name, problems in benchmarks for p in problems]
        self._hasher = GramHasher()
        texts = [math_tokens(problem.problem) for _, problem in self._problems]
        self._begins: dict[tuple[str, ...], int] = {}  # texts' first tokens, of each short length
        self._whole: dict[tuple[str, ...], int] = {}  # complete short texts
        for number, tokens in enumerate(texts):
            text = self._problems[number][1].problem
            for end in _SENTENCE_END.finditer(text[:MOST_BEGIN_CHARS]):
                begin = math_tokens(text[: end.end()])
                if LEAST_SENTENCE_TOKENS <= len(begin) < GRAM_TOKENS:
                    self._begins.setdefault(tuple(begin), number)
            if len(tokens) < GRAM_TOKENS:
                self._whole.setdefault(tuple(tokens), number)
        self._lengths = sorted({len(t) for t in self._whole if len(t) >= LEAST_TOKENS})
        long = [number for number, tokens in enumerate(texts) if len(tokens) >= GRAM_TOKENS]
        gram_W, starts = self._hasher.grams([texts[number] for number in long], GRAM_TOKENS)
        sizes = np.diff([*starts, len(gram_W)])
        owner_W = np.repeat(np.array(long, np.int64), sizes)
        pairs = np.unique(np.stack([gram_W, owner_W.astype(np.uint64)], axis=1), axis=0)
        self._gram_W, self._owner_W = pairs[:, 0], pairs[:, 1].astype(np.int64)
        self._sizes = np.bincount(self._owner_W, minlength=len(self._problems))

    def __len__(self) -> int:
        return len(self._problems)

    def find(self, texts: Sequence[Sequence[str]]) -> list[Hit | None]:
        """The benchmark problem that each row holds, by the rows' tokens."""
        hits: list[Hit | None] = [None] * len(texts)
        if not self._problems:
            return hits
        gram_W, starts = self._hasher.grams(texts, GRAM_TOKENS)
        row_W = np.repeat(np.arange(len(texts)), np.diff([*starts, len(gram_W)]))
        first_W = np.searchsorted(self._gram_W, gram_W)
        known_W = first_W < len(self._gram_W)
        known_W[known_W] = self._gram_W[first_W[known_W]] == gram_W[known_W]
        rows = set(np.unique(row_W[known_W]).tolist())
        for row, tokens in enumerate(texts):
            if len(tokens) < GRAM_TOKENS:
                number = self._begins.get(tuple(tokens), self._whole.get(tuple(tokens)))
            else:
                number = self._begun(tokens)
            if number is not None:
                hits[row] = self._hit(number, 1.0)
            elif row in rows:
                end = starts[row + 1] if row + 1 < len(starts) else len(gram_W)
                hits[row] = self._by_grams(np.unique(gram_W[starts[row] : end]))
        return hits

    def _begun(self, tokens: Sequence[str]) -> int | None:
        """The short benchmark problem that a longer row begins with."""
        found = (self._whole.get(tuple(tokens[:count])) for count in self._lengths)
        return next((number for number in found if number is not None), None)

    def _by_grams(self, gram_W: np.ndarray) -> Hit | None:
        first_W = np.searchsorted(self._gram_W, gram_W, side="left")
        end_W = np.searchsorted(self._gram_W, gram_W, side="right")
        common: Counter[int] = Counter()
        for first, end in zip(first_W.tolist(), end_W.tolist(), strict=True):
            common.update(self._owner_W[first:end].tolist())
        shares = [
            (count / min(len(gram_W), int(self._sizes[number])), -number)
            for number, count in common.items()
        ]
        share, number = max(shares)
        return self._hit(-number, share) if share >= LEAST_SHARE else None

    def _hit(self, number: int, share: float) -> Hit:
        return Hit(*self._problems[number], share)
