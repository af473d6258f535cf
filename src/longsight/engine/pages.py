"""The page pool: which page ids are free. Integers only; the memory itself belongs to the runner."""

from __future__ import annotations

from collections.abc import Sequence

from longsight.engine.errors import EngineConfigError, OutOfPagesError, PageAccountingError


class PageAllocator:
    """A free list over page ids 0 .. total - 1 with exact accounting.

    Freed pages are handed out again first: their memory has been touched already, so a server that sees short requests
    only never grows to the size of its pool.
    """

    def __init__(self, total: int) -> None:
        if total < 1:
            raise EngineConfigError(f"a page pool needs at least 1 page, got {total}")
        self.total = total
        self._free = list(range(total - 1, -1, -1))
        self._used = bytearray(total)

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` page ids, lowest first on a fresh pool. Raises OutOfPagesError, taking nothing, if fewer are free."""
        if count > len(self._free):
            raise OutOfPagesError(count, len(self._free), self.total)
        split = len(self._free) - count
        pages = self._free[split:][::-1]
        del self._free[split:]
        for page in pages:
            self._used[page] = 1
        return pages

    def release(self, pages: Sequence[int]) -> None:
        """Return pages. Raises PageAccountingError, before anything is changed, for a page that is not in use."""
        if len(set(pages)) != len(pages):
            raise PageAccountingError(f"the same page is returned twice in one call: {list(pages)[:8]}...")
        for page in pages:
            if not 0 <= page < self.total or not self._used[page]:
                raise PageAccountingError(f"page {page} is not in use (the pool holds pages 0 to {self.total - 1})")
        for page in reversed(pages):
            self._used[page] = 0
            self._free.append(page)
