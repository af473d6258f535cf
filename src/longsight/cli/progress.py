"""A progress bar on stderr while something long runs; nothing at all if nobody watches."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


class ProgressBar:
    """Use as a context; it goes away when the context ends, so that what follows has a clean line."""

    def __init__(self, what: str, *, is_bytes: bool = False) -> None:
        amount: ProgressColumn = DownloadColumn() if is_bytes else MofNCompleteColumn()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            amount,
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._progress.add_task(what, total=None, rate="")

    def update(self, done: int, total: int, rate: str = "") -> None:
        self._progress.update(self._task, completed=done, total=total, rate=rate)

    def name_and_update(self, what: str, done: int, total: int) -> None:
        self._progress.update(self._task, description=what, completed=done, total=total)

    def stop(self) -> None:
        self._progress.stop()

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
