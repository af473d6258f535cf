"""Errors of the model layer."""

from __future__ import annotations

from longsight.ops.errors import LongsightError


class ConfigError(LongsightError, ValueError):
    """A config.json that is unreadable, contradicts itself or asks for something this model code does not do."""


class CheckpointError(LongsightError, ValueError):
    """A checkpoint whose files or tensors are missing, unexpected, misshapen or unreadable; the message names them."""
