"""Errors of training."""

from __future__ import annotations

from longsight.ops.errors import LongsightError


class DataError(LongsightError, ValueError):
    """Training data that is missing, unreadable, damaged or made for something else; the message names the file."""
