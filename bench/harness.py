"""What every bench shares: a quiet machine first, interleaved timing, targets, and the record that is written down.

A bench fills a `Session`: `check` and `require` (compare.py) come before `race`, and `Session.add` refuses a figure
before a check has passed. Times are seconds, rates per second, sizes bytes, unless a name says otherwise.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.machine import ROOT, busy_share, commit, loadavg, machine_facts
from longsight.ops import Backend, choose
from longsight.ops.errors import LongsightError

RESULTS = ROOT / "bench" / "results"
WORK = ROOT / "bench" / "work"
SCHEMA = 1
QUIET_CPU_SHARE = 0.10  # others may use this share of the machine while we time


class BenchError(LongsightError):
    """A bench that cannot give an honest figure: a peer is missing, or nothing was compared."""


@dataclass(frozen=True)
class Target:
    """A goal for one figure: at least `value`, or at most it."""

    value: float
    at_least: bool = True

    def met(self, measured: float) -> bool:
        return measured >= self.value if self.at_least else measured <= self.value

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.value:g}"


@dataclass(frozen=True)
class Check:
    """One comparison that passed: what was compared with what, the error found, and the most that was allowed."""

    what: str
    error: float
    limit: float


@dataclass(frozen=True)
class Timing:
    """Seconds of each repeat of one contestant."""

    samples: tuple[float, ...]

    @property
    def best(self) -> float:
        return min(self.samples)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def as_dict(self) -> dict[str, float | int]:
        return {"best_s": self.best, "median_s": self.median, "repeats": len(self.samples)}


@dataclass
class Row:
    """One figure: what it is, the shapes, the value and its unit, the target if there is one, and what it came from."""

    what: str
    value: float
    unit: str
    shape: Mapping[str, Any]
    target: Target | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def met(self, quick: bool) -> bool | None:
        """None where nothing is judged: no target, or a quick run, whose shapes are not the target's."""
        return None if quick or self.target is None else self.target.met(self.value)


@contextmanager
def progress(text: str) -> Iterator[Callable[[str], None]]:
    """A spinner with elapsed time on stderr; the yielded function changes the text."""
    console = Console(stderr=True)
    # Once a second: drawing takes time from the very cores that are being timed.
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, refresh_per_second=1) as bar:
        task = bar.add_task(text, total=None)

        def say(now: str) -> None:
            bar.update(task, description=now)
            if not console.is_terminal:
                console.print(f"  {now}", highlight=False)

        yield say


class Session:
    """One run of one bench: its checks, its rows, and the file they end in."""

    def __init__(self, name: str, title: str, *, quick: bool = False, wait_for_quiet: float = 60.0) -> None:
        self.name, self.title, self.quick = name, title, quick
        self.wait_for_quiet = 0.0 if quick else wait_for_quiet
        self.checks: list[Check] = []
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.loads: list[dict[str, Any]] = []
        self.started = time.perf_counter()
        self.backend: Backend
        self.backend, self.backend_reason = choose()
        if not quick and self.backend.NAME == "reference":
            raise BenchError(f"no compiled kernels to measure: {self.backend_reason}")

    def pick(self, full: Any, quick: Any) -> Any:
        """A shape of the real run, or its small stand-in under --quick."""
        return quick if self.quick else full

    def passed(self, check: Check) -> None:
        self.checks.append(check)

    def add(self, row: Row) -> None:
        """Keep a figure. Raises BenchError if no output has been compared yet: no figure without a check."""
        if not self.checks:
            raise BenchError(f"{self.name}: {row.what} was measured before any output was compared")
        self.rows.append(row)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def settle(self) -> None:
        """Wait for other programs to go quiet, as long as allowed; what is found is recorded either way."""
        deadline = time.perf_counter() + self.wait_for_quiet
        busy = busy_share(0.05 if self.quick else 0.5)
        while busy > QUIET_CPU_SHARE and time.perf_counter() < deadline:
            busy = busy_share(1.0)
        quiet = busy <= QUIET_CPU_SHARE
        self.loads.append({"loadavg": loadavg(), "others_cpu_share": round(busy, 3), "quiet": quiet})
        if not quiet and not self.quick:
            Console(stderr=True).print(f"[yellow]machine not quiet: other programs use {busy:.0%} of it[/yellow]")

    def race(
        self, contestants: Mapping[str, Callable[[], object]], repeats: int, *, warmup: int = 1
    ) -> dict[str, Timing]:
        """Time the contestants in turns, round after round, so that a drift of the machine meets all of them alike."""
        repeats = 1 if self.quick else repeats
        self.settle()
        samples: dict[str, list[float]] = {name: [] for name in contestants}
        with progress(f"{self.name}: warming up") as say:
            for _ in range(warmup):
                for run in contestants.values():
                    run()
            for i in range(repeats):
                for name, run in contestants.items():
                    if i == 0:
                        say(f"{self.name}: timing {name}")
                    start = time.perf_counter()
                    run()
                    samples[name].append(time.perf_counter() - start)
        return {name: Timing(tuple(values)) for name, values in samples.items()}

    def peak_flops(self) -> float | None:
        """FLOP/s of the bf16 dot-product instruction on all threads now; None without compiled kernels."""
        if self.backend.NAME == "reference":
            return None
        from longsight.ops import kernels

        return kernels.peak_bf16_flops(torch.get_num_threads())

    def fraction_of_peak(self, rate: float, before: float) -> tuple[float, float]:
        """(`rate` over the peak, the peak): the larger of the peak `before` the race and now; a slow moment flatters.

        Raises BenchError where the rate is well above the peak: then the peak is wrong, and so is every fraction of it.
        """
        peak = max(before, self.peak_flops() or 0.0)
        if rate > 1.05 * peak and not self.quick:
            raise BenchError(f"{rate:.3g} FLOP/s is more than the measured peak of {peak:.3g}: the peak is wrong")
        return rate / peak, peak

    @property
    def quiet(self) -> bool:
        return all(load["quiet"] for load in self.loads)

    def record(self) -> dict[str, Any]:
        """The whole run as JSON-ready data; docs of the keys are in bench/README.md."""
        rows = []
        for row in self.rows:
            target = None if row.target is None else {"value": row.target.value, "at_least": row.target.at_least}
            rows.append({**asdict(row), "target": target, "met": row.met(self.quick)})
        return {
            "schema": SCHEMA,
            "name": self.name,
            "title": self.title,
            "command": command_line(self.name, self.quick),
            "utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "seconds": round(time.perf_counter() - self.started, 1),
            "quick": self.quick,
            "backend": {"name": self.backend.NAME, "reason": self.backend_reason},
            "machine": machine_facts(),
            "load": self.loads,
            "quiet": self.quiet,
            "checks": [asdict(check) for check in self.checks],
            "rows": rows,
            "notes": self.notes,
        }

    def finish(self) -> dict[str, Any]:
        """Write the record, print the table for people and then the record on one line. Returns the record.

        A quick run is written under bench/work/quick/, never over a real result.
        """
        if not self.rows:
            raise BenchError(f"{self.name} measured nothing")
        record = self.record()
        folder = WORK / "quick" if self.quick else RESULTS
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(record, indent=2) + "\n")
        self._print_table(path)
        print(json.dumps(record), flush=True)
        return record

    def _print_table(self, path: Path) -> None:
        console = Console(width=max(Console().width, 130), highlight=False)
        table = Table(title=f"{self.name}: {self.title}", title_justify="left", caption_justify="left")
        table.add_column("what", overflow="fold")
        table.add_column("shape", overflow="fold")
        for header in ("measured", "target", "met"):
            table.add_column(header, justify="right", no_wrap=True)
        for row in self.rows:
            met = row.met(self.quick)
            verdict = {True: "[green]yes[/green]", False: "[red]NO[/red]", None: "-"}[met]
            shape = ", ".join(f"{k} {v}" for k, v in row.shape.items())
            table.add_row(row.what, shape, figure(row.value, row.unit), str(row.target or "-"), verdict)
        console.print(table)
        worst = max(self.checks, key=lambda c: c.error / c.limit if c.limit else 0.0)
        console.print(
            f"{len(self.checks)} outputs compared first; nearest to its limit: {worst.what} "
            f"({worst.error:.2g} of {worst.limit:.2g})"
        )
        for note in self.notes:
            console.print(f"note: {note}")
        state = "quiet machine" if self.quiet else "MACHINE NOT QUIET"
        threads = torch.get_num_threads()
        console.print(
            f"{state}, load {loadavg()}, {threads} threads, {time.perf_counter() - self.started:.0f} s -> {path}"
        )


def figure(value: float, unit: str) -> str:
    """A value with about three digits and its unit."""
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{text}{unit}" if unit in ("x", "%") else f"{text} {unit}".strip()


def command_line(name: str, quick: bool) -> str:
    return f"python -m bench {name}{' --quick' if quick else ''}"


def child(module: str, *args: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run ``python -m module args`` in a fresh process and read the JSON on its last stdout line.

    For what only a process of its own can show, such as its peak memory. Its stderr passes through.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *args],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise BenchError(f"{module} {' '.join(args)} ended with code {done.returncode} and no result")
    result = json.loads(lines[-1])
    assert isinstance(result, dict)
    return result
