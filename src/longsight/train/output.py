"""A run's output directory: one run at a time, and nothing of an earlier one is mixed in or lost by accident."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longsight.locked import lock_directory
from longsight.ops.errors import LongsightError
from longsight.train import checkpoint
from longsight.train.logs import CSV, CURVES, TENSORBOARD
from longsight.train.parallel import Processes


class OutputError(LongsightError, OSError):
    """An output directory that another run uses, or that holds an earlier run."""


@contextmanager
def taken(out: Path, processes: Processes, *, resume: bool, restart: bool) -> Iterator[None]:
    """Hold the directory while a run writes to it. restart: delete what an earlier run left.

    Raises OutputError if another process holds it, or if it holds a run that is neither resumed nor restarted.
    """
    if not processes.main:
        processes.wait()
        yield
        return
    try:
        lock = lock_directory(out)
    except BlockingIOError:
        raise OutputError(f"{out} is in use by another training run; give another --out") from None
    with lock:
        if restart:
            _clear(out)
        elif not resume and (out / CSV).exists():
            raise OutputError(
                f"{out} holds an earlier run; --resume goes on with it, --restart deletes it, --out takes another place"
            )
        processes.wait()
        yield


def _clear(out: Path) -> None:
    """Delete what a run writes, and nothing else."""
    checkpoint.clear(out / "checkpoints")
    for name in (CSV, CURVES):
        (out / name).unlink(missing_ok=True)
    for name in (TENSORBOARD, "model"):
        shutil.rmtree(out / name, ignore_errors=True)
