"""Directories that one process at a time may use."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    import msvcrt

    def _take(lock: BinaryIO) -> None:
        try:
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as error:  # what it raises where another process has the byte
            raise BlockingIOError(error.errno, error.strerror) from None
else:
    import fcntl

    def _take(lock: BinaryIO) -> None:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_directory(path: Path, *, mode: int = 0o777) -> BinaryIO:
    """Make the directory if need be and take it, until the file that this returns is closed or the process ends.

    Raises BlockingIOError if another process has it, another OSError if it cannot be used.
    """
    path.mkdir(parents=True, exist_ok=True, mode=mode)
    lock = (path / "lock").open("ab")
    try:
        _take(lock)
    except OSError:
        lock.close()
        raise
    return lock
