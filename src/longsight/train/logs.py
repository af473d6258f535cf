"""What a run tells: a CSV row a step, the same numbers for TensorBoard, a picture of them, and a progress bar."""

from __future__ import annotations

import csv
import math
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from longsight.train.checkpoint import replace
from longsight.train.config import RunConfig

CSV, TENSORBOARD, CURVES = "log.csv", "tensorboard", "curves.png"
DRAWN_EVERY = 60.0  # seconds


@dataclass
class Row:
    """One step. step counts over the whole run from 1, stage_step inside the stage.

    loss: nats per target; accuracy: share of targets that were the likeliest token; kl, captured [layers]: nan where a
    layer's mode has none; rates: learning rate by group; norms: gradient norm before clipping by clipped group;
    validation: held-out loss, nan on steps that did not measure it.
    tokens_per_second: rows of all processes over the time of the step.
    """

    step: int
    stage: str
    stage_step: int
    loss: float
    accuracy: float
    kl: Sequence[float]
    captured: Sequence[float]
    rates: Mapping[str, float]
    norms: Mapping[str, float]
    tokens_per_second: float
    validation: float = math.nan
    validation_accuracy: float = math.nan

    def cells(self) -> dict[str, str | int | float]:
        """Column name to value, in the order of the file."""
        return {
            "step": self.step,
            "stage": self.stage,
            "stage_step": self.stage_step,
            "loss": self.loss,
            "accuracy": self.accuracy,
            **{f"kl_{i}": x for i, x in enumerate(self.kl)},
            **{f"captured_{i}": x for i, x in enumerate(self.captured)},
            **{f"lr_{name}": x for name, x in self.rates.items()},
            **{f"norm_{name}": x for name, x in self.norms.items()},
            "tokens_per_second": self.tokens_per_second,
            "validation": self.validation,
            "validation_accuracy": self.validation_accuracy,
        }


class Logs:
    """Everything below, kept by the main process alone; use as a context. A run continued at `step` continues them."""

    def __init__(self, config: RunConfig, step: int, *, main: bool) -> None:
        self._config, self._step, self._main = config, step, main
        self._drawn = time.monotonic()

    def __enter__(self) -> Logs:
        self._writers: list[CsvLog | TensorBoardLog] = []
        self._screen = Screen(self._config.log_every, watched=self._main)
        if self._main:
            self._config.out.mkdir(parents=True, exist_ok=True)
            self._writers.append(CsvLog(self._config.out / CSV, self._step))
            self._writers.append(TensorBoardLog(self._config.out / TENSORBOARD, self._step))
        self._screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._screen.stop()
        # A full disk fails here again, and its first error says more.
        with suppress(OSError) if error is not None else nullcontext():
            for writer in self._writers:
                writer.close()
            self._draw()

    def stage(self, name: str, done: int, total: int) -> None:
        """A stage of `total` steps begins or goes on."""
        self._screen.stage(name, done, total)

    def step(self, row: Row, total: int) -> None:
        """A step of a stage of `total` steps is done."""
        for writer in self._writers:
            writer.write(row)
        self._screen.step(row, total)

    def say(self, text: str) -> None:
        """A line that stays on the screen."""
        self._screen.say(text)

    def draw(self) -> None:
        """Draw the curves anew from the CSV file, which takes a second, unless they are younger than a minute."""
        if time.monotonic() - self._drawn > DRAWN_EVERY:
            self._draw()

    def _draw(self) -> None:
        if self._main:
            from longsight.train.curves import plot_curves

            plot_curves(self._config.out / CSV, self._config.out / CURVES)
        self._drawn = time.monotonic()


class CsvLog:
    """One row a step, flushed at once; nan is an empty cell. Floats are written so that reading gives the same bits."""

    def __init__(self, path: Path, step: int) -> None:
        """Continue a file after `step`: later rows belong to steps that will be done again."""
        self._keep(path, step)
        self._file = path.open("a", newline="")
        self._writer = csv.writer(self._file)
        self._empty = self._file.tell() == 0

    def write(self, row: Row) -> None:
        cells = row.cells()
        if self._empty:
            self._writer.writerow(cells)
            self._empty = False
        self._writer.writerow([_cell(value) for value in cells.values()])
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    @staticmethod
    def _keep(path: Path, step: int) -> None:
        if not path.exists():
            return
        # A killed process may have left part of a line.
        head, *lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] or [b""]
        kept = [line for line in lines if int(line.split(b",", 1)[0]) <= step]

        def write(file: BinaryIO) -> None:
            file.write(head + b"".join(kept) if kept else b"")

        replace(path, write)


class TensorBoardLog:
    """The same numbers as scalars, one tag a column. Needs the package tensorboard."""

    def __init__(self, directory: Path, step: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tensorboard's own deprecations
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(str(directory), purge_step=step + 1, flush_secs=10)

    def write(self, row: Row) -> None:
        for name, value in row.cells().items():
            if isinstance(value, float) and not math.isnan(value):
                self._writer.add_scalar(_tag(name), value, row.step)

    def close(self) -> None:
        self._writer.close()


class Screen:
    """A progress bar where a terminal watches, else a line every `every` steps; both on stderr."""

    def __init__(self, every: int, *, watched: bool) -> None:
        self._every, self._watched = every, watched
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (watched and console.is_terminal),
        )
        self._task = TaskID(0)

    def stage(self, name: str, done: int, total: int) -> None:
        """A bar of its own; those of earlier stages stay above it."""
        self._task = self._bar.add_task(name, total=total, completed=done, figures="")

    def step(self, row: Row, total: int) -> None:
        figures = f"loss {row.loss:.4f}, accuracy {row.accuracy:.3f}, {row.tokens_per_second:,.0f} tokens/s"
        self._bar.update(self._task, completed=row.stage_step, figures=figures)
        last = row.stage_step == total
        if self._watched and self._bar.disable and (row.step % self._every == 0 or last):
            print(f"{row.stage} {row.stage_step}/{total}: {figures}{_layers(row)}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        if self._watched and self._bar.disable:
            print(f"longsight: {text}", file=sys.stderr, flush=True)
        elif self._watched:
            self._bar.console.print(f"longsight: {text}", highlight=False, markup=False, soft_wrap=True)

    def start(self) -> None:
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()


def _cell(value: str | int | float) -> str | int:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    return value


def _tag(column: str) -> str:
    """kl_3 -> kl/3, so that TensorBoard puts the layers of one figure together."""
    for family in ("kl", "captured", "lr", "norm"):
        if column.startswith(f"{family}_"):
            return f"{family}/{column.removeprefix(f'{family}_')}"
    return column


def _layers(row: Row) -> str:
    """KL and captured mass of the layers that have them, for a plain line."""
    parts = []
    for name, values in (("kl", row.kl), ("captured", row.captured)):
        known = [x for x in values if not math.isnan(x)]
        if known:
            parts.append(f", {name} {' '.join(f'{x:.3f}' for x in known)}")
    return "".join(parts)
