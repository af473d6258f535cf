"""Which pages of a layer's pool each sequence of a batch owns. Plain integers; pages may be shared between beams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


class PageTables:
    """Page ids per sequence. A page with several owners is copied before anyone appends to it.

    pages: the pages handed out so far; a pool must hold that many.
    """

    def __init__(self, sequences: int, block_size: int) -> None:
        self.block_size = block_size
        self.lengths = [0] * sequences
        self.tables: list[list[int]] = [[] for _ in range(sequences)]
        self.pages = 0
        self._owners: Counter[int] = Counter()
        self._free: list[int] = []

    def extend(self, counts: Sequence[int]) -> tuple[list[tuple[int, int]], bool]:
        """Make room for `counts` more tokens. -> pages to copy, as (source, target), and whether a table changed."""
        copies: list[tuple[int, int]] = []
        changed = False
        for sequence, count in enumerate(counts):
            table, length = self.tables[sequence], self.lengths[sequence]
            if count and length % self.block_size and self._owners[table[-1]] > 1:
                shared = table[-1]
                self._owners[shared] -= 1
                table[-1] = self._take()
                copies.append((shared, table[-1]))
                changed = True
            self.lengths[sequence] = length + count
            while len(table) * self.block_size < self.lengths[sequence]:
                table.append(self._take())
                changed = True
        return copies, changed

    def pages_for(self, tokens: int) -> int:
        """Pages of all sequences if each comes to `tokens` tokens."""
        return len(self.tables) * -(-tokens // self.block_size)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Shorten every sequence to its length."""
        for sequence, length in enumerate(lengths):
            keep = -(-length // self.block_size)
            self._give_back(self.tables[sequence][keep:])
            del self.tables[sequence][keep:]
            self.lengths[sequence] = length

    def select(self, sequences: Sequence[int]) -> None:
        """The batch becomes these of its sequences, in this order; a sequence may come several times."""
        old = self.tables
        self.tables = [list(old[i]) for i in sequences]
        self.lengths = [self.lengths[i] for i in sequences]
        for table in self.tables:
            self._owners.update(table)
        for table in old:
            self._give_back(table)

    def _take(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page = self.pages
            self.pages += 1
        self._owners[page] = 1
        return page

    def _give_back(self, pages: Sequence[int]) -> None:
        for page in pages:
            self._owners[page] -= 1
            if not self._owners[page]:
                self._free.append(page)
