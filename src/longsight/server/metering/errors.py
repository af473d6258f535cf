"""What metering refuses."""

from __future__ import annotations

from longsight.ops import LongsightError


class PriceError(LongsightError):
    """A price table that cannot be read, or usage that no price can be put on."""


class LedgerError(LongsightError):
    """A ledger that cannot be opened, or a line that could not be committed to it."""
