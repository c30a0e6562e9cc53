"""Hashes of n-grams of tokens, for many texts at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

_MOST_WORDS = 1 << 17  # hashes that are kept; then the table begins anew
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no position is lost modulo 2^64


def text_hash(text: str) -> int:
    """64 bits of a text's hash, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class GramHasher:
    """Hashes n-grams. Keeps the hashes of words, since few words make most of a text."""

    def __init__(self) -> None:
        self._words: dict[str, int] = {}

    def grams(self, texts: Sequence[Sequence[str]], n: int) -> tuple[np.ndarray, np.ndarray]:
        """The n-grams of texts, one after the other.

        Args:
            texts: tokens of each text. One of fewer than n tokens has one gram, the complete text.
            n: tokens of a gram.

        Returns:
            (uint64 hashes of all grams, where each text's begin).
        """
        words = self._words
        if len(words) > _MOST_WORDS:
            words.clear()
        flat: list[int] = []
        sizes = []
        for tokens in texts:
            for token in tokens:
                found = words.get(token)
                if found is None:
                    found = words[token] = text_hash(token)
                flat.append(found)
            short = max(0, n - len(tokens))
            flat.extend([0] * short)
            sizes.append(len(tokens) + short)
        word_W = np.array(flat, np.uint64)
        token_counts = np.array(sizes, np.int64)
        ends = np.cumsum(token_counts)
        gram_W = np.zeros(max(0, len(word_W) - n + 1), np.uint64)
        for k in range(n):  # wraps around, as hashes may
            gram_W = gram_W * _BASE + word_W[k : k + len(gram_W)]
        inside = np.ones(len(gram_W), bool)
        for k in range(1, n):  # grams that reach into the next text
            last = ends[:-1] - k
            inside[last[last >= 0]] = False
        counts = token_counts - n + 1
        return _mixed(gram_W[inside]), np.cumsum(counts) - counts


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """The hashes with every bit depending on all: sums of few words do not yet."""
    hashes = (hashes ^ (hashes >> np.uint64(31))) * np.uint64(0x7FB5D329728EA185)
    return hashes ^ (hashes >> np.uint64(27))
