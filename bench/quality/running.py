"""All runs of a study, one after the other or some side by side, each in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock

from bench.machine import ROOT
from bench.quality.study import FAILED, Run, Study, StudyError, finished


class Processes:
    """Programs under way, which end together."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._ended = Lock(), False

    def run(self, command: Sequence[str], log: Path, threads: int) -> int:
        """The exit code, negative for a signal. What it says goes to the end of `log`."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with log.open("ab") as out:
            with self._lock:
                if self._ended:
                    return -signal.SIGTERM
                process = subprocess.Popen(
                    command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT, env=environment
                )
                self._running.add(process)
            try:
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)

    def end(self) -> None:
        """Ask all to end, and start no other. A training that is asked saves first."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()


def carry_out(study: Study, out: Path, *, retry: bool = False, jobs: int = 1, threads: int | None = None) -> None:
    """All that is missing, `jobs` runs at a time. Raises StudyError if one was stopped from outside, or could not be
    evaluated; the others are stopped then too."""
    processes = Processes()
    threads = threads or max(len(os.sched_getaffinity(0)) // jobs, 1)
    runs = list(study.runs())
    with ThreadPoolExecutor(jobs) as pool:

        def work(number: int, run: Run) -> None:
            name, began = f"run {number} of {len(runs)}: {run.arm.name}, seed {run.seed}", time.monotonic()
            say(name)
            one(study, run, out.resolve(), processes, retry=retry, threads=threads)
            say(f"{name}: done after {(time.monotonic() - began) / 60:.1f} minutes")

        started = [pool.submit(work, number, run) for number, run in enumerate(runs, 1)]
        try:
            for future in as_completed(started):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.end()
            raise


def one(study: Study, run: Run, out: Path, processes: Processes, *, retry: bool, threads: int) -> None:
    """What is missing of one run."""
    directory = out / run.directory
    directory.mkdir(parents=True, exist_ok=True)
    failed = directory / FAILED
    how = "--restart" if retry and failed.exists() else "--resume"
    if how == "--restart":
        failed.unlink()
    if not finished(directory) and not failed.exists():
        train(study, run, directory, how, processes, threads)
    if finished(directory):
        command = [sys.executable, "-m", "bench.quality.evaluating", str(study.path.resolve()), run.directory]
        command += ["--out", str(out), "--threads", str(threads)]
        code = processes.run(command, directory / "evaluate.log", threads)
        if _by_signal(code):
            raise _stopped(directory, code)
        if code != 0:
            raise StudyError(f"{directory} could not be evaluated, {_reason(directory / 'evaluate.log', code)}")


def train(study: Study, run: Run, directory: Path, how: str, processes: Processes, threads: int) -> None:
    """`longsight train`; if it fails, why is kept. Raises StudyError if it was stopped."""
    command = [sys.executable, "-m", "longsight.cli.main", "train", str(study.train.resolve()), "--out", str(directory)]
    command += [how, *(part for assignment in run.assignments for part in ("--set", assignment))]
    command += ["--threads", str(threads)]
    (directory / "command.json").write_text(json.dumps(command, indent=1) + "\n", encoding="utf-8")
    code = processes.run(command, directory / "train.log", threads)
    if _by_signal(code):  # no result, and the next time goes on
        raise _stopped(directory, code)
    if code != 0 or not finished(directory):
        reason = _reason(directory / "train.log", code)
        (directory / FAILED).write_text(reason + "\n", encoding="utf-8")
        say(f"  {run.arm.name}, seed {run.seed} failed, {reason}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _by_signal(code: int) -> bool:
    return code < 0 or code > 128


def _stopped(directory: Path, code: int) -> StudyError:
    return StudyError(f"the run in {directory} was stopped (exit code {code}); the same command goes on with it")


def _reason(log: Path, code: int) -> str:
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return f"exit code {code}: {said[-1] if said else 'nothing was said'}"
