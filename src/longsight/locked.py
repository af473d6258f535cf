"""Directories that one process at a time may use."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import BinaryIO


def lock_directory(path: Path, *, mode: int = 0o777) -> BinaryIO:
    """Make the directory if need be and take it, until the file that this returns is closed or the process ends.

    Raises BlockingIOError if another process has it, another OSError if it cannot be used.
    """
    path.mkdir(parents=True, exist_ok=True, mode=mode)
    lock = (path / "lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise
    return lock
