"""Which pages of the KV pool are free, and how many sequences read each of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

TRASH_PAGE = 0


class PageAllocator:
    """Free list and reference counts of a page pool; page 0 (trash) is never handed out.

    A page is handed out with one reference; it is free again when its last reference goes. A page
    that is marked (`keep`) keeps its content then: it stays idle until pages are wanted, and can be
    shared anew until that moment. The page that has been idle longest makes way first.

    Attributes:
        peak_used: most pages that had a reference at once.
        on_evict: called with an idle page whose content makes way for another.
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
        """Pages that can be handed out in all."""
        return len(self._references) - 1

    @property
    def num_free(self) -> int:
        """Pages that can be handed out now, idle ones among them."""
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
        """How many holders a page has; 0 when it is free or idle."""
        return self._references[page]

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages with one reference each, or None (and no change) when too few are free."""
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
        """Takes one reference from each page.

        The last page goes first: what continues a prefix makes way before the prefix.

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
        """Marks a page: it keeps its content when its last reference goes.

        Raises:
            ValueError: the page is free.
        """
        if self._references[page] < 1:
            raise ValueError(f"page {page}: cannot be kept, it is free")
        self._kept.add(page)

    def forget(self, page: int) -> None:
        """Takes the mark away; an idle page is free at once."""
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
