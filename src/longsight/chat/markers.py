"""Literals in a growing text, and how much of it may still become one of them."""

from __future__ import annotations

import re


class Markers:
    """Some literals to look for."""

    def __init__(self, *literals: str) -> None:
        self._literals = literals
        self._any = re.compile("|".join(map(re.escape, literals)))

    def first(self, text: str, start: int) -> tuple[int, str | None]:
        """From `start` on: where the first of them begins, and which; or how far none of them can begin, and None."""
        found = self._any.search(text, start)
        open_end = len(text) - max(_unfinished(text, start, literal) for literal in self._literals)
        # A short literal may be a part of a longer one that is not all there yet.
        if found is not None and found.start() < open_end:
            return found.start(), found[0]
        return open_end, None


def _unfinished(text: str, start: int, literal: str) -> int:
    """Length of the longest end of text[start:] that is a beginning, but not the whole, of `literal`."""
    longest = min(len(text) - start, len(literal) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(literal[:n])), 0)
