"""A ledger whose transactions wait until they may."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event

from sqlalchemy import Engine

from longsight.server.metering.ledger import Ledger, Line


class SlowLedger(Ledger):
    """Transactions wait for `go`. begun: whether one has come that far; batches: the lines of each."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.begun, self.go, self.batches = Event(), Event(), list[int]()

    def add(self, new: Sequence[Line]) -> None:
        self.begun.set()
        assert self.go.wait(10)
        self.batches.append(len(new))
        super().add(new)
