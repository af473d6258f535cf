"""``python -m bench.quality STUDY.toml [--out DIR]``: train every arm with every seed, evaluate, write the report.

The same command goes on where it stopped: a run under way from its newest checkpoint, an evaluation from its last
cell. A run that failed is kept as failed until --retry. With --report only what is there already is reported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.machine import ROOT
from bench.quality.report import collect, write_report
from bench.quality.study import FAILED, Run, Study, StudyError, finished
from longsight.cli.progress import ProgressBar
from longsight.evals import evaluate
from longsight.evals.haystack import read_documents
from longsight.evals.suite import Texts
from longsight.ops.errors import LongsightError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument("study", type=Path, help="as bench/quality/recall.toml")
    parser.add_argument("--out", type=Path, help="runs and results; default: bench/work/quality/STUDY")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the report goes (docs)")
    parser.add_argument("--report", action="store_true", help="train and evaluate nothing")
    parser.add_argument("--retry", action="store_true", help="begin failed runs anew")
    parser.add_argument("--threads", type=int, help="CPU threads of training")
    args = parser.parse_args(arguments)
    try:
        study = Study.from_file(args.study)
        out = args.out or ROOT / "bench" / "work" / "quality" / study.name
        if not args.report:
            carry_out(study, out, retry=args.retry, threads=args.threads)
        record = collect(study, out)
        (out / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(write_report(study, record, args.docs))
    except LongsightError as error:
        print(f"quality: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("quality: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


def carry_out(study: Study, out: Path, *, retry: bool = False, threads: int | None = None) -> None:
    """All that is missing, one run after the other."""
    texts = Texts(read_documents(study.text), loss=read_documents(study.loss_text))
    runs = list(study.runs())
    for i, run in enumerate(runs, 1):
        directory = out / run.directory
        print(f"run {i} of {len(runs)}: {run.arm.name}, seed {run.seed}", file=sys.stderr, flush=True)
        if retry and (directory / FAILED).exists():
            (directory / FAILED).unlink()
            train(study, run, directory, "--restart", threads)
        elif not finished(directory) and not (directory / FAILED).exists():
            train(study, run, directory, "--resume", threads)
        if finished(directory):
            settings = study.settings(run.arm)
            with ProgressBar("evaluating") as bar:
                evaluate(directory / "model", settings, directory / "evals", texts=texts, progress=bar.name_and_update)


def train(study: Study, run: Run, directory: Path, how: str, threads: int | None) -> None:
    """`longsight train` in a process of its own; if it fails, why is kept. Raises StudyError if it was stopped."""
    command = [sys.executable, "-m", "longsight.cli.main", "train", str(study.train), "--out", str(directory), how]
    command += [part for assignment in run.assignments for part in ("--set", assignment)]
    command += ["--threads", str(threads)] if threads else []
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "command.json").write_text(json.dumps(command, indent=1) + "\n", encoding="utf-8")
    with (directory / "train.log").open("ab") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    if code < 0 or code > 128:  # stopped from outside: no result, and the next time goes on
        raise StudyError(f"the run in {directory} was stopped (exit code {code}); the same command goes on with it")
    if code != 0 or not finished(directory):
        said = (directory / "train.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = f"exit code {code}: {said[-1] if said else 'nothing was said'}"
        (directory / FAILED).write_text(reason + "\n", encoding="utf-8")
        print(f"  failed, {reason}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
