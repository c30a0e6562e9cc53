"""Which pages of the KV pool are free, and how many sequences read each of the others."""

from __future__ import annotations

from collections.abc import Iterable

TRASH_PAGE = 0


class PageAllocator:
    """Free list and reference counts of a page pool; page 0 (trash) is never handed out.

    A page is handed out with one reference; it is free again when its last reference goes.
    """

    def __init__(self, num_pages: int):
        if num_pages < 2:
            raise ValueError(f"num_pages={num_pages}: page 0 is not usable, so at least 2 pages")
        self._free = list(range(num_pages - 1, TRASH_PAGE, -1))
        self._references = [0] * num_pages
        self.peak_used = 0

    @property
    def num_usable(self) -> int:
        """Pages that can be handed out in all."""
        return len(self._references) - 1

    @property
    def num_free(self) -> int:
        """Pages that can be handed out now."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Pages with at least one reference."""
        return self.num_usable - self.num_free

    def references(self, page: int) -> int:
        """How many holders a page has; 0 when it is free."""
        return self._references[page]

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages with one reference each, or None (and no change) when too few are free."""
        if count > len(self._free):
            return None
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        self.peak_used = max(self.peak_used, self.num_used)
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Adds one reference to each page.

        Raises:
            ValueError: a page is free.
        """
        for page in pages:
            if self._references[page] < 1:
                raise ValueError(f"page {page}: cannot be shared, it is free")
            self._references[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Takes one reference from each page.

        Raises:
            ValueError: a page is free already.
        """
        for page in pages:
            if self._references[page] < 1:
                raise ValueError(f"page {page}: released more often than it was taken")
            self._references[page] -= 1
            if self._references[page] == 0:
                self._free.append(page)
