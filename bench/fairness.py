"""A short request beside a million-token prompt: its time to first token against idle."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from bench.compare import require
from bench.engine import engine_for, greedy
from bench.harness import Row, Session, Target, progress
from bench.shapes import tokens
from longsight.engine import StepStats
from longsight.model import load_model
from longsight.model.constructed import constructed_path
from longsight.model.tokenizer import Tokenizer

NAME = "fairness"
TITLE = "short requests while a million tokens are read"
FAIR = Target(3.0, at_least=False)


def run(session: Session) -> None:
    path = constructed_path()
    model, tokenizer = load_model(path), Tokenizer.from_dir(path)
    n = session.pick(1 << 20, 1 << 13)
    text = Path(__file__).read_text()
    short = tokenizer.encode("What does this bench measure? " + text[:1000])
    long = list(tokenizer.encode(text * (n // len(text) + 1)))[: n - 600]
    stats: list[StepStats] = []
    engine = engine_for(model, n + 4096, prefix_cache=False, speculate=False, on_step=stats.append)

    def first_token() -> float:
        request = greedy(short, 1)
        started = time.perf_counter()
        engine.add(request)
        while not request.output:
            engine.step()
        return time.perf_counter() - started

    session.settle()
    idle = statistics.median(first_token() for _ in range(5))
    big = greedy(long, 1)
    engine.add(big)
    worst, seen = 0.0, []
    with progress(f"{NAME}: short requests beside {tokens(n)} tokens"):
        while not big.finished:
            for _ in range(session.pick(20, 1)):
                engine.step()
            if big.finished:
                break
            # It could not be taken earlier than at the end of the step under way: that step is the "one step".
            taken = first_token()
            seen.append(taken)
            worst = max(worst, taken / idle)
    session.passed(require("short requests that got no token", float(not seen), 0))
    where = {"beside": tokens(n), "short": len(short)}
    detail = {"idle_s": idle, "median_s": statistics.median(seen), "worst_s": max(seen), "requests": len(seen)}
    step = max(s.seconds for s in stats)
    session.add(Row("short request's TTFT over idle, the step under way aside, worst", worst, "x", where, FAIR, detail))
    session.add(Row("longest step", 1e3 * step, "ms", where))
