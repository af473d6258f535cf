"""What stops a bench."""

from __future__ import annotations

from longsight.ops import LongsightError


class BenchError(LongsightError, ValueError):
    """The server cannot be measured as asked; the message says why and what to do."""
