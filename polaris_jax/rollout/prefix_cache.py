"""Finds pages by their tokens, so that sequences that begin alike share pages.

Only full pages can be found. A page's key is a digest of the previous page's key and the page's own
tokens, so equal keys mean equal tokens from the sequence's first token on. Pages without a reader
can be found until the allocator reuses them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from polaris_jax.rollout.pages import PageAllocator

KEY_BYTES = 16  # two different prefixes among 2^40 share a key with probability below 2^-48
FIRST_KEY = bytes(KEY_BYTES)


def extend_keys(keys: list[bytes], tokens: Sequence[int], page_size: int) -> None:
    """Appends the keys of the full pages of `tokens` that `keys` does not hold yet.

    Args:
        keys: keys of the first pages of the same tokens.
        tokens: a sequence from its first token on.
        page_size: tokens of a page.
    """
    for page in range(len(keys), len(tokens) // page_size):
        own = np.array(tokens[page * page_size : (page + 1) * page_size], np.int32)
        before = keys[-1] if keys else FIRST_KEY
        keys.append(hashlib.blake2b(before + own.tobytes(), digest_size=KEY_BYTES).digest())


class PrefixCache:
    """The pages of one allocator that can be found by their tokens."""

    def __init__(self, allocator: PageAllocator):
        self._allocator = allocator
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        allocator.on_evict = self._evicted

    def __len__(self) -> int:
        return len(self._page_of)

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """The pages of the longest known beginning of `keys`; no reference is taken."""
        pages: list[int] = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def add(self, key: bytes, page: int) -> None:
        """Adds a full page that has a reference, unless another page holds the same tokens."""
        if key in self._page_of or page in self._key_of:
            return
        self._allocator.keep(page)
        self._page_of[key], self._key_of[page] = page, key

    def clear(self) -> None:
        """Forgets all pages, for example because the weights changed or the pool was freed."""
        for page in self._key_of:
            self._allocator.forget(page)
        self._page_of.clear()
        self._key_of.clear()

    def _evicted(self, page: int) -> None:
        del self._page_of[self._key_of.pop(page)]
