"""The constructed model reads a long text through the engine and answers from it, in a fresh process.

    python -m bench.workers.million TOKENS THREADS [KV_DIR [CGROUP_PROCS]]

With KV_DIR the pages lie in files there; CGROUP_PROCS is a control group's cgroup.procs, which the process joins before
it takes memory for weights and pages. The text is this Python's standard library, repeated if it is too short, with one
needle at 37 % of the depth. The last stdout line is JSON: seconds to the first token, seconds per further token, the
answer, and the memory's accounts.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import sysconfig
import time
from pathlib import Path

import torch

from bench.harness import progress
from bench.machine import peak_rss
from longsight.engine import Engine, Request, SamplingParams, StepStats
from longsight.model import load_model
from longsight.model.constructed import constructed_path

QUESTION = "\nThe secret code for the amber lantern is "
ANSWER = "7316-KQZ."
DEPTH = 0.37
DECODED = 64


def library_text(size: int) -> bytes:
    """`size` bytes of Python sources."""
    parts: list[bytes] = []
    total = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if total >= size:
            break
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        parts.append(path.read_bytes())
        total += len(parts[-1])
    text = b"".join(parts)
    return (text * (size // len(text) + 1))[:size]


def prompt_ids(size: int) -> list[int]:
    """Exactly `size` tokens (the model's tokens are bytes): text, needle, text, question."""
    question = QUESTION.encode()
    needle = question + ANSWER.encode() + b"\n"
    text = library_text(size - len(needle) - len(question))
    at = int(DEPTH * len(text))
    return list(text[:at] + needle + text[at:] + question)


def main(arguments: list[str]) -> None:
    size, threads = (int(x) for x in arguments[:2])
    kv_dir = Path(arguments[2]) if len(arguments) > 2 else None
    if len(arguments) > 3:
        Path(arguments[3]).write_text(str(os.getpid()))
    torch.set_num_threads(threads)
    model = load_model(constructed_path())
    seen = 0

    with progress(f"loading, {size} tokens") as say:

        def on_step(stats: StepStats) -> None:
            nonlocal seen
            if stats.prompt_tokens and 20 * stats.context // size > seen:
                seen = 20 * stats.context // size
                say(f"read {stats.context:,} of {size:,} tokens, {stats.tokens_per_second:,.0f} tokens/s now")

        engine = Engine(model, max_model_len=size + DECODED, speculate=False, on_step=on_step, kv_dir=kv_dir)
        # Python's ints of a million ids would be the largest thing in memory; the request keeps 4 bytes each.
        request = Request(prompt_ids(size), SamplingParams(max_tokens=DECODED, temperature=0.0, ignore_eos=True))
        start = time.perf_counter()
        arrived = [time.perf_counter() for update in engine.generate(request) if update.tokens]
    pages = -(-(size + DECODED) // model.config.block_size)
    result = {
        "read_s": arrived[0] - start,
        "token_s": [b - a for a, b in itertools.pairwise(arrived)],
        "answer": bytes(t for t in request.output if t < 256).decode(errors="replace")[: len(ANSWER)],
        "expected": ANSWER,
        "peak_rss_bytes": peak_rss(),
        "page_bytes": pages * engine.page_bytes,
        "weight_bytes": model.weight_bytes,
        "backend": model.backend.NAME,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
