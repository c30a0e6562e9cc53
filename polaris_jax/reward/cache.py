"""Verdicts by (answer, golds), the least recently used forgotten first; bounded in both senses."""

from __future__ import annotations

from collections import OrderedDict

from polaris_jax.reward.math.equivalence import Explanation
from polaris_jax.reward.worker_process import Pair


class VerdictCache:
    """Verdicts of the newest pairs, bounded by a number of pairs and of characters in total."""

    def __init__(self, max_pairs: int, max_chars: int) -> None:
        self._max_pairs, self._max_chars = max_pairs, max_chars
        self._found: OrderedDict[Pair, Explanation] = OrderedDict()
        self._chars = 0

    def __len__(self) -> int:
        return len(self._found)

    @property
    def chars(self) -> int:
        """Characters of all the pairs and their verdicts."""
        return self._chars

    def get(self, pair: Pair) -> Explanation | None:
        """The verdict of a pair, which becomes the most recently used; None if unknown."""
        if pair not in self._found:
            return None
        self._found.move_to_end(pair)
        return self._found[pair]

    def put(self, pair: Pair, verdict: Explanation) -> None:
        """Adds a new pair and forgets old ones until the bounds hold."""
        self._found[pair] = verdict
        self._chars += _chars(pair, verdict)
        while len(self._found) > self._max_pairs or self._chars > self._max_chars:
            self._chars -= _chars(*self._found.popitem(last=False))

    def clear(self) -> None:
        """Forgets everything."""
        self._found.clear()
        self._chars = 0


def _chars(pair: Pair, verdict: Explanation) -> int:
    texts = (pair[0], *pair[1], verdict.reason, verdict.answer, verdict.gold)
    return sum(map(len, texts))
