"""A context larger than memory: its pages in a file, and a control group that has room for a part of them only."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.compare import require
from bench.harness import WORK, BenchError, Row, Session, child, progress
from bench.shapes import tokens

NAME = "small_memory"
TITLE = "constructed model, pages in a file, with less memory than the pages take"
CGROUP = Path("/sys/fs/cgroup")


def run(session: Session) -> None:
    context, answer_room = session.pick(1 << 19, 1 << 14), 64
    size, threads = str(context - answer_room), str(torch.get_num_threads())
    WORK.mkdir(parents=True, exist_ok=True)

    def ask(*limits: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=WORK) as folder:
            result = child("bench.workers.million", size, threads, folder, *limits)
        wrong = result["answer"] != result["expected"]
        session.passed(require(f"wrong answers ({result['answer']!r} for {result['expected']!r})", float(wrong), 0))
        return result

    session.settle()
    roomy = ask()
    where = {"context": tokens(context), "pages": f"{roomy['page_bytes'] / 2**20:.0f} MiB"}
    for share in session.pick((0.5, 0.25), (1.0,)):
        limit = int(share * roomy["page_bytes"]) + roomy["weight_bytes"] + session.pick(128, 512) * 2**20
        with memory_limit(limit) as group:
            tight = ask(str(group))
        shape = {**where, "memory": f"{limit / 2**20:.0f} MiB"}
        detail = {f"{k}_{name}": r[k] for name, r in (("roomy", roomy), ("tight", tight)) for k in ("read_s",)}
        session.add(Row("reading, time over that with enough memory", tight["read_s"] / roomy["read_s"], "x", shape))
        slower = sum(tight["token_s"]) / sum(roomy["token_s"])
        rates = {"tokens_per_s": len(tight["token_s"]) / sum(tight["token_s"])}
        session.add(Row("decode, time over that with enough memory", slower, "x", shape, detail={**detail, **rates}))
    session.note("the limit holds for what the process takes once its libraries are loaded: weights, pages, workspace")
    session.note("128 MiB of it for the work itself; both runs have their pages in a file on the same disk")


@contextmanager
def memory_limit(size: int) -> Iterator[Path]:
    """A control group of at most `size` bytes, page cache included. -> its cgroup.procs."""
    first_version = CGROUP / "memory"
    group = (first_version if first_version.is_dir() else CGROUP) / f"longsight-bench-{os.getpid()}"
    limit = "memory.limit_in_bytes" if first_version.is_dir() else "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(size))
    except OSError as error:
        raise BenchError(f"no control group with a memory limit can be made here ({error}); it takes root") from error
    try:
        yield group / "cgroup.procs"
    finally:
        with progress("small_memory: ending the control group"):
            group.rmdir()
