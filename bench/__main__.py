"""``python -m bench [NAME ...] [--quick]``: without names all benches run, each in a process of its own.

The last line on stdout is JSON: the record of a single bench, or a summary of several. Exit code 1 if a bench failed
or an output did not match its reference; a missed target is reported, not an error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import torch
from rich.console import Console

from bench import registry
from bench.harness import Session
from bench.machine import ROOT
from longsight.ops.errors import LongsightError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which benches: {', '.join(registry.NAMES)}")
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes, one repeat, nothing judged: checks that it runs"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads for both sides")
    parser.add_argument("--list", action="store_true", help="name the benches and stop")
    args = parser.parse_args(arguments)
    if args.list:
        print("\n".join(registry.NAMES))
        return 0
    unknown = [name for name in args.names if name not in registry.NAMES]
    if unknown:  # said before anything runs
        parser.error(f"no bench is called {unknown[0]!r}; there are {', '.join(registry.NAMES)}")
    if len(args.names) == 1:
        return one(args.names[0], quick=args.quick, threads=args.threads)
    return several(tuple(args.names) or registry.NAMES, quick=args.quick, threads=args.threads)


def one(name: str, *, quick: bool, threads: int) -> int:
    try:
        bench = registry.load(name)
        torch.set_num_threads(threads)
        session = Session(bench.NAME, bench.TITLE, quick=quick)
        bench.run(session)
        session.finish()
    except LongsightError as error:
        print(f"bench {name}: error: {error}", file=sys.stderr)
        return 1
    return 0


def several(names: tuple[str, ...], *, quick: bool, threads: int) -> int:
    """Run each in a fresh process, so that none inherits another's memory or caches; print what was met and the total
    time.
    """
    started, summary = time.perf_counter(), []
    for i, name in enumerate(names, 1):
        command = [sys.executable, "-m", "bench", name, "--threads", str(threads), *(["--quick"] if quick else [])]
        print(f"bench {i} of {len(names)}: {name}", file=sys.stderr, flush=True)  # the child shows its own progress
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="", flush=True)
        record = json.loads(done.stdout.strip().splitlines()[-1]) if done.returncode == 0 else None
        summary.append(outcome(name, record))
    seconds = time.perf_counter() - started
    failed = [s["name"] for s in summary if s["failed"]]
    met, judged = sum(s["met"] for s in summary), sum(s["judged"] for s in summary)
    console = Console(highlight=False)
    for s in summary:
        text = "FAILED" if s["failed"] else f"{s['met']} of {s['judged']} targets met"
        console.print(f"  {s['name']:<20} {text}{'' if not s['missed'] else ': missed ' + '; '.join(s['missed'])}")
    console.print(
        f"bench: {met} of {judged} targets met, {len(failed)} benches failed, {seconds / 60:.1f} minutes in all"
    )
    print(json.dumps({"benches": summary, "seconds": round(seconds, 1), "failed": failed, "quick": quick}))
    return 1 if failed else 0


def outcome(name: str, record: dict[str, Any] | None) -> dict[str, Any]:
    rows = record["rows"] if record else []
    missed = [f"{row['what']} {row['shape'].get('tokens', '')}".strip() for row in rows if row["met"] is False]
    return {
        "name": name,
        "failed": record is None,
        "seconds": record["seconds"] if record else None,
        "judged": sum(row["met"] is not None for row in rows),
        "met": sum(row["met"] is True for row in rows),
        "missed": missed,
    }


if __name__ == "__main__":
    sys.exit(main())
