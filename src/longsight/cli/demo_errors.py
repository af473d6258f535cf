"""What can go wrong in the demo. Apart from demo.py, which `--help` loads: these bring torch along."""

from __future__ import annotations

from longsight.ops.errors import LongsightError


class NotEnoughTextError(LongsightError):
    """The text asked for cannot be read or is too short to be worth reading."""


class DemoFailedError(LongsightError):
    """The request failed; the message is the server's."""
