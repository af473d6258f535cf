"""The page pool: who holds which page, and which pages still hold something known. Integers only; the memory itself
belongs to the runner."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from longsight.engine.errors import EngineConfigError, OutOfPagesError, PageAccountingError


class PagePool:
    """Page ids 0 .. total - 1, each with its number of holders.

    A page that nobody holds is either unused, or *known*: the prefix cache still knows what it contains. Known pages
    are given away when unused ones run out, the one released longest ago first; `on_evict` hears of each.
    Unused pages are handed out newest first: their memory has been touched already, so a server that sees short
    requests only never grows to the size of its pool.
    """

    def __init__(self, total: int) -> None:
        if total < 1:
            raise EngineConfigError(f"a page pool needs at least 1 page, got {total}")
        self.total = total
        self.on_evict: Callable[[int], None] = lambda page: None
        self._unused = list(range(total - 1, -1, -1))
        self._holders = [0] * total
        self._known = bytearray(total)
        self._idle: OrderedDict[int, None] = OrderedDict()  # known and held by nobody, released longest ago first

    @property
    def free(self) -> int:
        """Pages that `allocate` can give."""
        return len(self._unused) + len(self._idle)

    @property
    def used(self) -> int:
        """Pages that somebody holds."""
        return self.total - self.free

    @property
    def cached(self) -> int:
        """Pages that nobody holds and whose content is still known."""
        return len(self._idle)

    def holders(self, page: int) -> int:
        return self._holders[page]

    def allocate(self, count: int) -> list[int]:
        """`count` pages, held once each, in ascending order: a scan of neighbouring pages is one stream.

        Raises OutOfPagesError, taking nothing.
        """
        if count > self.free:
            raise OutOfPagesError(count, self.free, self.total)
        while len(self._unused) < count:
            page, _ = self._idle.popitem(last=False)
            self._known[page] = 0
            self._unused.append(page)
            self.on_evict(page)
        split = len(self._unused) - count
        pages = sorted(self._unused[split:])
        del self._unused[split:]
        for page in pages:
            self._holders[page] = 1
        return pages

    def hold(self, page: int) -> None:
        """One holder more for a page that is held, or idle but known."""
        if not self._holders[page]:
            if page not in self._idle:
                raise PageAccountingError(f"page {page} is unused: there is nothing in it to hold")
            del self._idle[page]
        self._holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One holder less for each page. Raises PageAccountingError, before anything is changed, if one is not held.

        The last page is idle longest from then on: the end of a prefix is given away before its beginning.
        """
        if len(set(pages)) != len(pages):
            raise PageAccountingError(f"the same page is returned twice in one call: {list(pages)[:8]}...")
        for page in pages:
            if not 0 <= page < self.total or not self._holders[page]:
                raise PageAccountingError(f"page {page} is not in use (the pool holds pages 0 to {self.total - 1})")
        for page in reversed(pages):
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if self._known[page]:
                self._idle[page] = None
            else:
                self._unused.append(page)

    def remember(self, page: int) -> None:
        """The content of a held page is known from now on."""
        if not self._holders[page]:
            raise PageAccountingError(f"page {page} is held by nobody, so nobody can vouch for its content")
        self._known[page] = 1

    def forget(self, page: int) -> None:
        """The content of a page is not known any more."""
        self._known[page] = 0
        if page in self._idle:
            del self._idle[page]
            self._unused.append(page)

    def adopt(self, pages: Iterable[int]) -> None:
        """Unused pages whose content is known from an earlier run: idle from now on, the first one longest."""
        adopted = dict.fromkeys(pages)
        unused = set(self._unused)
        strangers = [page for page in adopted if page not in unused]
        if strangers:
            raise PageAccountingError(f"pages {strangers[:8]} are in use or not in the pool of {self.total}")
        self._unused = [page for page in self._unused if page not in adopted]
        for page in adopted:
            self._known[page] = 1
            self._idle[page] = None
