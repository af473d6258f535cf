"""Prompt lookup: guess that the text goes on as it did after the last place that reads like its end.

No second model. A wrong guess costs the verification of its rows only, and the length adapts: it doubles while guesses
hold and shrinks when they fail, down to pauses of growing length where looking does not pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

LONGEST_MATCH, SHORTEST_MATCH = 8, 2  # tokens at the end that must have occurred before
FIRST_LENGTH, MAX_LENGTH = 4, 15  # tokens guessed; with the last known token a verification has 16 rows at most
MAX_PAUSE = 64  # tokens


@dataclass
class Drafter:
    """Guesses for one request. Feed it every known token; ask `propose` before a step, tell `verified` after it."""

    _tokens: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32), repr=False)
    _known: int = 0
    _length: int = FIRST_LENGTH
    _pause: int = 0
    _next_pause: int = 1

    def extend(self, tokens: Sequence[int]) -> None:
        end = self._known + len(tokens)
        if end > len(self._tokens):
            grown = np.empty(max(end, 2 * len(self._tokens)), np.int32)
            grown[: self._known] = self._tokens[: self._known]
            self._tokens = grown
        self._tokens[self._known : end] = tokens
        self._known = end

    def propose(self, limit: int) -> list[int]:
        """Up to `limit` tokens that may come next; none while a pause lasts or where nothing reads alike."""
        if self._pause:
            self._pause -= 1
            return []
        at = self._earlier_place()
        if at is None:
            return []
        return [int(t) for t in self._tokens[at : min(at + min(self._length, limit), self._known)]]

    def verified(self, proposed: int, accepted: int) -> None:
        """`accepted` of `proposed` tokens came true."""
        if accepted == proposed:
            self._length = min(2 * self._length, MAX_LENGTH)
        else:
            self._length = max(accepted, 1)
        if accepted:
            self._next_pause = 1
        else:
            self._pause, self._next_pause = self._next_pause, min(2 * self._next_pause, MAX_PAUSE)

    def _earlier_place(self) -> int | None:
        """Where the text goes on after the latest of the longest earlier matches of its end."""
        tokens, n = self._tokens, self._known
        if n <= SHORTEST_MATCH:
            return None
        ends = np.flatnonzero(tokens[: n - 1] == tokens[n - 1])  # each a candidate's last matching token
        found = None
        for length in range(2, LONGEST_MATCH + 1):
            ends = ends[ends >= length - 1]
            ends = ends[tokens[ends - (length - 1)] == tokens[n - length]] if n >= length else ends[:0]
            if not len(ends):
                break
            found = int(ends[-1]) + 1
        return found
