"""Errors of the model layer."""

from __future__ import annotations

from longsight.ops.errors import LongsightError


class ConfigError(LongsightError, ValueError):
    """A config.json or training file that is unreadable, contradicts itself or asks for something that is not done."""


class CheckpointError(LongsightError, ValueError):
    """A checkpoint whose files or tensors are missing, unexpected, misshapen or unreadable; the message names them."""
