"""Pages of the KV pool, on the host: allocation, reference counts, and finding pages by tokens.

Sequences that begin alike share pages. Only full pages can be found. A page's key is a digest of
the previous page's key and the page's own tokens, so equal keys mean equal tokens from the
sequence's first token on. Pages without a reader can be found until the allocator reuses them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

TRASH_PAGE = 0
KEY_BYTES = 16  # two different prefixes among 2^40 share a key with probability below 2^-48
FIRST_KEY = bytes(KEY_BYTES)


def pages_for(tokens: int, page_size: int) -> int:
    """Number of pages that `tokens` tokens take."""
    return -(-tokens // page_size)


class PageAllocator:
    """Free list and reference counts of a page pool; page 0 (trash) is never allocated.

    A page is allocated with one reference, and is free again when its last reference is released. A
    marked page (`keep`) becomes idle instead: the page keeps its content and can be shared again
    until it is evicted. If the free list is empty, the page that has been idle longest is evicted.

    Attributes:
        peak_used: the most pages that had a reference at once.
        on_evict: called with an idle page before another use overwrites its content.
    """

    def __init__(self, num_pages: int):
        if num_pages < 2:
            raise ValueError(f"num_pages={num_pages}: page 0 is not usable, so at least 2 pages")
        self._free = list(range(num_pages - 1, TRASH_PAGE, -1))
        self._references = [0] * num_pages
        self._kept: set[int] = set()
        self._idle: dict[int, None] = {}  # kept pages without a reference, longest idle first
        self.peak_used = 0
        self.on_evict: Callable[[int], None] | None = None

    @property
    def num_usable(self) -> int:
        """Number of pages that can be allocated in all."""
        return len(self._references) - 1

    @property
    def num_free(self) -> int:
        """Number of pages that can be allocated now, including idle pages."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle(self) -> int:
        """Pages without a reference whose content is kept."""
        return len(self._idle)

    @property
    def num_used(self) -> int:
        """Pages with at least one reference."""
        return self.num_usable - self.num_free

    def references(self, page: int) -> int:
        """Number of references to a page; 0 if the page is free or idle."""
        return self._references[page]

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages with one reference each; None, and no change, if too few are free."""
        if count > self.num_free:
            return None
        pages = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        self.peak_used = max(self.peak_used, self.num_used)
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Adds one reference to each page, idle ones included.

        Raises:
            ValueError: a page is free.
        """
        for page in pages:
            if page in self._idle:
                del self._idle[page]
            elif self._references[page] < 1:
                raise ValueError(f"page {page}: cannot be shared, it is free")
            self._references[page] += 1
        self.peak_used = max(self.peak_used, self.num_used)

    def release(self, pages: Sequence[int]) -> None:
        """Releases one reference to each page.

        The last page is released first, so that the end of a prefix is evicted before its start.

        Raises:
            ValueError: a page is free already.
        """
        for page in reversed(pages):
            if self._references[page] < 1:
                raise ValueError(f"page {page}: released more often than it was taken")
            self._references[page] -= 1
            if self._references[page] == 0:
                if page in self._kept:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def keep(self, page: int) -> None:
        """Marks a page, which then keeps its content after its last reference is released.

        Raises:
            ValueError: the page is free.
        """
        if self._references[page] < 1:
            raise ValueError(f"page {page}: cannot be kept, it is free")
        self._kept.add(page)

    def forget(self, page: int) -> None:
        """Removes the mark of a page; an idle page becomes free at once."""
        self._kept.discard(page)
        if page in self._idle:
            del self._idle[page]
            self._free.append(page)

    def _evict(self) -> int:
        page = next(iter(self._idle))
        del self._idle[page]
        self._kept.discard(page)
        if self.on_evict is not None:
            self.on_evict(page)
        return page


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
