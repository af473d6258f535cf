"""Who may go in now. Rates and concurrency are checked after tokenizing and before the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from longsight.server.identity import Caller


class Ticket(Protocol):
    """A request under way."""

    def close(self, tokens: int) -> None:
        """It is over, and took so many tokens, read and written. Closing twice is harmless."""


class Gate(Protocol):
    def admit(self, caller: Caller, tokens: int) -> Ticket:
        """tokens: the most it may come to. Raises ApiError 429 with the time to wait."""

    def headers(self, caller: Caller) -> Mapping[str, str]:
        """x-ratelimit-* as they stand."""
