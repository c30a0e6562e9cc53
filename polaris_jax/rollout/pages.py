"""Allocates pages of the KV pool, and counts the references to each page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

TRASH_PAGE = 0


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
