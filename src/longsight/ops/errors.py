"""Errors of the operator layer."""

from __future__ import annotations


class LongsightError(Exception):
    """Base of every error that Longsight raises on purpose."""


class UnsupportedError(LongsightError, ValueError):
    """A shape, dtype or option that no backend (or not the named one) can run; the message names what is accepted."""


class BackendUnavailableError(LongsightError, RuntimeError):
    """A backend asked for by name cannot run here; the message says why and what to do."""
