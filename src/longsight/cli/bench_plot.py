"""A bench as a picture: times and throughput against load, or against prompt length where there is one load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only, no window
from matplotlib import pyplot as plt
from matplotlib.ticker import ScalarFormatter

PANELS = (
    ("ttft_ms", "Time to first token (ms)"),
    ("tpot_ms", "Time per output token (ms)"),
    ("e2el_ms", "End-to-end (ms)"),
)


def plot(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """runs: summaries. Lines are medians, dashed ones the 95th percentile; a colour for each series."""
    kind = "request_rate" if "request_rate" in runs[0] else "concurrency"
    by_load = len({run[kind] for run in runs}) > 1 or len({run["input_len"] for run in runs}) == 1
    axis, series = (kind, "input_len") if by_load else ("input_len", kind)
    figure, panels = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for value in dict.fromkeys(run[series] for run in runs):
        rows = sorted((run for run in runs if run[series] == value and run["completed"]), key=lambda run: run[axis])
        if not rows:
            continue
        x = [run[axis] for run in rows]
        label = f"{value:,} tokens" if by_load else f"{value:g} {'per second' if kind == 'request_rate' else 'at once'}"
        color = panels[0, 0].plot([], [])[0].get_color()
        for panel, (metric, _) in zip(panels.flat, PANELS, strict=False):
            shown = [(at, run[metric]) for at, run in zip(x, rows, strict=True) if run[metric]]
            at = [point for point, _ in shown]
            panel.plot(at, [v["median"] for _, v in shown], "o-", color=color, label=f"{label}, median")
            panel.plot(at, [v["p95"] for _, v in shown], "^--", color=color, alpha=0.6, label=f"{label}, p95")
        panels[1, 1].plot(x, [run["output_throughput"] for run in rows], "o-", color=color, label=label)
    names = {"concurrency": "requests at once", "request_rate": "requests per second", "input_len": "prompt tokens"}
    for panel, title in zip(panels.flat, (*(title for _, title in PANELS), "Output tokens per second"), strict=True):
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_xlabel(names[axis])
        panel.set_ylim(bottom=0)
        points = sorted({run[axis] for run in runs})
        if len(points) > 1 and points[-1] / points[0] >= 4:
            panel.set_xscale("log", base=2)
        panel.set_xticks(points)
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    panels[0, 0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
