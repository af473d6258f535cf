"""What a bench found: tables for the terminal, JSON for everything else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from longsight import __version__
from longsight.cli.bench_run import Bench, Run

STATISTICS = ("mean", "median", "p95", "p99")
METRICS = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "e2el_ms": "E2EL"}


def statistics(values: Sequence[float]) -> dict[str, float] | None:
    """Milliseconds from seconds, percentiles between neighbours interpolated; None of nothing."""
    if not values:
        return None
    found = (np.mean(values), *np.percentile(values, (50, 95, 99)))
    return {name: round(float(value) * 1000, 3) for name, value in zip(STATISTICS, found, strict=True)}


def summary(run: Run) -> dict[str, Any]:
    """Requests that failed count as errors and in nothing else."""
    good = [sample for sample in run.samples if sample.ok]
    failed = [sample for sample in run.samples if sample.error is not None]
    ends = [sample.ended for sample in good if sample.ended is not None]
    duration = max(ends) - min(sample.due for sample in run.samples) if ends else 0.0

    def per_second(amount: float) -> float | None:
        return round(amount / duration, 3) if duration > 0 else None

    def known(values: Sequence[float | None]) -> list[float]:
        return [value for value in values if value is not None]

    prompts = [sample.prompt_tokens for sample in good if sample.prompt_tokens is not None]
    return {
        run.kind: run.load,
        "input_len": run.input_len,
        "planned": run.planned,
        "completed": len(good),
        "failed": len(failed),
        "unfinished": run.planned - len(good) - len(failed),
        "errors": [
            {"count": count, "error": error, "example": next(s.detail for s in failed if s.error == error)}
            for error, count in Counter(sample.error for sample in failed).most_common()
        ],
        "duration_s": round(duration, 3),
        "request_throughput": per_second(len(good)),
        "input_throughput": per_second(sum(prompts)) if prompts else None,
        "output_throughput": per_second(sum(sample.output_tokens for sample in good)),
        "input_tokens": {"min": min(prompts), "max": max(prompts)} if prompts else None,
        "cached_tokens": sum(sample.cached_tokens for sample in good),
        "output_tokens": sum(sample.output_tokens for sample in good),
        "output_tokens_counted_by": "usage" if all(s.usage_tokens is not None for s in good) else "pieces",
        "ttft_ms": statistics(known([sample.ttft for sample in good])),
        "tpot_ms": statistics(known([sample.tpot for sample in good])),
        "itl_ms": statistics([gap for sample in good for gap in sample.gaps]),
        "e2el_ms": statistics(known([sample.latency for sample in good])),
        "sent_late_ms": statistics([sample.sent - sample.due for sample in good]),
    }


def load_name(found: dict[str, Any]) -> str:
    return f"{found['request_rate']:g}/s" if "request_rate" in found else f"{found['concurrency']:g} at once"


def show(bench: Bench) -> None:
    """Two tables on stdout: what each run came to, and how long things took in it."""
    found = [summary(run) for run in bench.runs]
    console = Console(width=None if Console().is_terminal else 100)
    runs = Table("prompt", "load", title=f"{bench.model} at {bench.plan.api}")
    for column in ("done", "failed", "req/s", "in tok/s", "out tok/s", "cached"):
        runs.add_column(column, justify="right")
    times = Table("prompt", "load", "ms", title="milliseconds")
    for column in STATISTICS:
        times.add_column(column, justify="right")
    for run in found:
        where = (f"{run['input_len']:,}", load_name(run))
        runs.add_row(
            *where,
            f"{run['completed']}/{run['planned']}",
            f"[red]{run['failed']}[/red]" if run["failed"] else "0",
            *(_figure(run[name]) for name in ("request_throughput", "input_throughput", "output_throughput")),
            f"{run['cached_tokens']:,}",
        )
        for i, (metric, name) in enumerate(METRICS.items()):
            values = run[metric] or {}
            cells = (_figure(values.get(statistic)) for statistic in STATISTICS)
            times.add_row(*(where if i == 0 else ("", "")), name, *cells, end_section=i + 1 == len(METRICS))
    console.print(runs, times)
    for run in found:
        for error in run["errors"]:
            console.print(
                f"{error['count']} failed ({run['input_len']:,} tokens, {load_name(run)}): {error['example']}",
                markup=False,
                highlight=False,
            )
        if run["unfinished"]:
            console.print(f"{run['unfinished']} not finished ({run['input_len']:,} tokens, {load_name(run)})")
    if not bench.exact:
        console.print("The server has no /tokenize: prompts have about as many tokens as asked for.")
    if any(run["completed"] and run["output_tokens_counted_by"] == "pieces" for run in found):
        console.print("The server sends no usage: a piece of the stream counts as one output token.")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if value >= 10 else f"{value:.3f}"


def write_json(bench: Bench, path: Path, *, interrupted: bool = False) -> None:
    """Everything: the plan, less the key, each run's summary, and each request's times in seconds from its due time."""
    plan = {name: value for name, value in vars(bench.plan).items() if name != "api_key"}
    runs = [{**summary(run), "requests": [_request(sample) for sample in run.samples]} for run in bench.runs]
    document = {
        "longsight": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **plan,
        "model": bench.model,
        "exact_prompts": bench.exact,
        "interrupted": interrupted,
        "runs": runs,
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _request(sample: Any) -> dict[str, Any]:
    def after(moment: float | None) -> float | None:
        return None if moment is None else round(moment - sample.due, 6)

    return {
        "prompt_tokens": sample.prompt_tokens,
        "output_tokens": sample.output_tokens,
        "sent": after(sample.sent),
        "arrivals": [after(moment) for moment in sample.arrivals],
        "ended": after(sample.ended),
        "error": sample.detail or None,
    }
