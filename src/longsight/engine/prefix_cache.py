"""Which page holds which prefix, so that a prompt seen before is not read again.

A page holds keys, values and index keys together, so a hit restores all that selection needs. Known full pages are
immutable. A partial page is known by the tokens valid when it was stored; its holder may write further slots, readers
copy the valid ones to a page of their own and never look past them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from longsight.engine.page_chain import PageChain
from longsight.engine.pages import PagePool

# Children of one page looked at for a hit that ends mid-page, newest first: a system prompt may have thousands.
MAX_CHILDREN = 32


@dataclass(frozen=True, slots=True)
class StoredPage:
    """A full page whose content is known: tokens int32 [block size], after the page whose digest is `parent`."""

    page: int
    digest: bytes
    parent: bytes
    tokens: array[int]
    extra: bytes = b""


@dataclass(frozen=True, slots=True)
class Hit:
    """A known prefix of `tokens` tokens: full pages, now held, and perhaps a page, held too, to copy slots from."""

    pages: list[int] = field(default_factory=list)
    tail: int | None = None
    tokens: int = 0


@dataclass(slots=True)
class _Entry:
    page: int
    digest: bytes | None  # None: a partial page
    parent: bytes
    tokens: array[int]
    extra: bytes
    trusted: bool = True  # False: from an earlier run, and not yet compared with its checksum


class PrefixCache:
    """A tree of known pages over a pool.

    on_stored hears of each full page when it becomes known. intact(page) says whether a page from an earlier run still
    holds what was recorded; it is asked at the page's first hit. lookups, hits and their tokens: of requests admitted,
    each counted once; evictions: known pages given away because there were no unused ones.
    """

    def __init__(
        self,
        pool: PagePool,
        block_size: int,
        *,
        on_stored: Callable[[StoredPage], None] | None = None,
        intact: Callable[[int], bool] | None = None,
    ) -> None:
        self.pool, self.block_size = pool, block_size
        self._on_stored, self._intact = on_stored, intact
        self.changes = 0  # pages that became known or unknown so far
        self.lookups = self.hits = self.looked_up_tokens = self.hit_tokens = self.evictions = 0
        self._by_digest: dict[bytes, _Entry] = {}
        self._by_page: dict[int, _Entry] = {}
        self._children: dict[bytes, dict[int, _Entry]] = {}  # by the parent's digest, then by page
        pool.on_evict = self._evict

    def __len__(self) -> int:
        """Known pages, held or idle."""
        return len(self._by_page)

    def acquire(self, chain: PageChain, limit: int) -> Hit:
        """The longest known prefix of at most `limit` tokens; its pages are held on return."""
        pages: list[int] = []
        while (len(pages) + 1) * self.block_size <= limit:
            entry = self._by_digest.get(chain.digest(len(pages)))
            if entry is None or not self._trust(entry):
                break
            self.pool.hold(entry.page)
            pages.append(entry.page)
        start = len(pages) * self.block_size
        tail, matching = self._best_child(chain, len(pages), start, min(start + self.block_size, limit))
        if tail is not None:
            self.pool.hold(tail)
        return Hit(pages, tail, start + matching)

    def count(self, hit: Hit, wanted: int) -> None:
        """A request with a prompt of `wanted` tokens was admitted with this hit."""
        self.lookups += 1
        self.hits += hit.tokens > 0
        self.looked_up_tokens += wanted
        self.hit_tokens += hit.tokens

    def store(self, chain: PageChain, pages: Sequence[int], computed: int, *, partial: bool = False) -> None:
        """Make a request's pages known as far as its `computed` tokens fill them; `partial`: also the last one.

        Costs only what is new since the last call. A page whose content another page holds already stays unknown.
        """
        full = computed // self.block_size
        for i in range(chain.stored, full):
            digest, page = chain.digest(i), pages[i]
            if digest in self._by_digest:
                continue
            tokens = chain.tokens(i * self.block_size, (i + 1) * self.block_size)
            self._add(_Entry(page, digest, chain.digest(i - 1), tokens, chain.extra(i)))
            if self._on_stored is not None:
                self._on_stored(StoredPage(page, digest, chain.digest(i - 1), tokens, chain.extra(i)))
        chain.stored = max(chain.stored, full)
        if partial and computed % self.block_size:
            parent, tokens = chain.digest(full - 1), chain.tokens(full * self.block_size, computed)
            _, known = self._best_child(chain, full, full * self.block_size, computed)
            if known < len(tokens):
                self._add(_Entry(pages[full], None, parent, tokens, chain.extra(full)))

    def seed(self, stored: Iterable[StoredPage]) -> None:
        """Pages that an earlier run left behind, the one used longest ago first. Each is checked at its first hit."""
        by_page = {s.page: s for s in stored}
        self.pool.adopt(by_page)
        for s in by_page.values():
            entry = _Entry(s.page, s.digest, s.parent, s.tokens, s.extra, trusted=self._intact is None)
            if s.digest in self._by_digest:
                self.pool.forget(s.page)
            else:
                self._link(entry)

    def clear(self) -> None:
        """Forget everything. Held pages stay with their holders."""
        for page in list(self._by_page):
            self._drop(page)
            self.pool.forget(page)

    def _best_child(self, chain: PageChain, page: int, start: int, stop: int) -> tuple[int | None, int]:
        """The known page that goes on like the request's tokens [start, stop) for longest, and for how many tokens."""
        children = self._children.get(chain.digest(page - 1))
        if not children or stop <= start:
            return None, 0
        wanted, extra = np.asarray(chain.tokens(start, stop)), chain.extra(page)
        best, length = None, 0
        for entry in list(islice(reversed(children.values()), MAX_CHILDREN)):
            if entry.extra != extra:
                continue
            n = min(len(entry.tokens), len(wanted))
            different = np.flatnonzero(np.asarray(entry.tokens[:n]) != wanted[:n])
            matching = int(different[0]) if len(different) else n
            if matching > length and self._trust(entry):
                best, length = entry.page, matching
        return best, length

    def _trust(self, entry: _Entry) -> bool:
        if not entry.trusted:
            if self._intact is None or not self._intact(entry.page):
                self._drop(entry.page)
                self.pool.forget(entry.page)
                return False
            entry.trusted = True
        return True

    def _add(self, entry: _Entry) -> None:
        if entry.page in self._by_page:  # it was known as a partial page
            self._drop(entry.page)
        self._link(entry)
        self.pool.remember(entry.page)

    def _link(self, entry: _Entry) -> None:
        self.changes += 1
        self._by_page[entry.page] = entry
        self._children.setdefault(entry.parent, {})[entry.page] = entry
        if entry.digest is not None:
            self._by_digest[entry.digest] = entry

    def _evict(self, page: int) -> None:
        self.evictions += 1
        self._drop(page)

    def _drop(self, page: int) -> None:
        self.changes += 1
        entry = self._by_page.pop(page)
        siblings = self._children[entry.parent]
        del siblings[page]
        if not siblings:
            del self._children[entry.parent]
        if entry.digest is not None:
            del self._by_digest[entry.digest]
