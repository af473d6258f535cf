"""What was used in the last minute."""

from __future__ import annotations

from collections import deque

SECOND = 10**9
SLOTS = 60  # of a second each


class SlidingWindow:
    """Amounts of the last minute in slots of one second: at most 61 numbers, whatever the rate.

    Times are nanoseconds of a monotonic clock. A slot counts until all of it is more than a minute old, so what any 60
    seconds hold is never underestimated, and is overestimated by at most one second's use.
    """

    def __init__(self) -> None:
        self._slots: deque[list[int]] = deque()  # [slot number, amount], oldest first
        self.total = 0

    def wait(self, amount: int, limit: int, now: int) -> int:
        """Nanoseconds until `amount`, no more than `limit`, fits; 0 if it does now."""
        self._expire(now)
        excess, wait = self.total + amount - limit, 0
        for slot, used in self._slots:
            if excess <= 0:
                break
            excess -= used
            wait = (slot + SLOTS + 1) * SECOND - now
        return wait

    def add(self, amount: int, now: int) -> None:
        self._expire(now)
        slot = now // SECOND
        if self._slots and self._slots[-1][0] == slot:
            self._slots[-1][1] += amount
        else:
            self._slots.append([slot, amount])
        self.total += amount

    def give_back(self, amount: int, added: int, now: int) -> None:
        """Less was used than was added at the time `added`; without effect if that is over a minute ago."""
        self._expire(now)
        for entry in self._slots:
            if entry[0] == added // SECOND:
                entry[1] -= amount
                self.total -= amount

    def empty_in(self, now: int) -> int:
        """Nanoseconds until nothing counts any more."""
        self._expire(now)
        return (self._slots[-1][0] + SLOTS + 1) * SECOND - now if self._slots else 0

    def _expire(self, now: int) -> None:
        while self._slots and self._slots[0][0] < now // SECOND - SLOTS:
            self.total -= self._slots.popleft()[1]
