"""Results as pictures: accuracy against length, loss against position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only, no window
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from longsight.evals.report import Results, attentions, tokens

COLOURS = ("#2563a8", "#d9730d", "#2e7d4f", "#9a3fa0", "#8a8f98", "#b3261e", "#00838f", "#6d4c41")
MARKERS = "osD^vPX*"
# name -> (x, {value, low, high}) in order of x
Curves = Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]]


def plot_results(results: Results, out: Path) -> list[Path]:
    """Write accuracy.png and loss.png into `out`, each if there is something to draw; the files written."""
    names, written = attentions(results), []
    parts = results["parts"]
    tasks = list(dict.fromkeys(p["task"] for p in parts if "accuracy" in p))
    panels = {
        task: {
            name: [
                (p["length"], p["accuracy"])
                for p in sorted(parts, key=lambda p: p.get("length", 0))
                if p["attention"] == name and p.get("task") == task and "accuracy" in p
            ]
            for name in names
        }
        for task in tasks
    }
    if panels:
        plot_accuracy(out / "accuracy.png", panels)
        written.append(out / "accuracy.png")
    losses = {
        p["attention"]: [(math.sqrt(b["first"] * (b["last"] - 1)), b) for b in p["loss"]] for p in parts if "loss" in p
    }
    if losses:
        plot_loss(out / "loss.png", losses)
        written.append(out / "loss.png")
    return written


def plot_accuracy(path: Path, panels: Mapping[str, Curves], title: str = "Accuracy against length") -> None:
    """A panel per task, a line per attention, bars for the intervals."""
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(max(1.2 + 3.3 * columns, 7.0), 1.3 + max(2.7 * rows, 3.2)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis in grid.flat[len(panels) :]:
        axis.set_visible(False)
    lengths = sorted({int(x) for curves in panels.values() for curve in curves.values() for x, _ in curve})
    for place, (axis, (task, curves)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        _draw(axis, curves)
        axis.set_title(task, loc="left", fontsize=11)
        axis.set_ylim(-0.04, 1.04)
        axis.set_xlim(lengths[0] / 1.3, lengths[-1] * 1.3)
        axis.set_xticks(lengths, [tokens(n) for n in lengths], fontsize=9)
        if place % columns == 0:
            axis.set_ylabel("accuracy")
        axis.set_xlabel("prompt and answer, tokens", fontsize=9)
    _finish(figure, grid[0, 0], path, title)


def plot_loss(path: Path, curves: Curves, title: str = "Loss by position") -> None:
    """A line per attention over positions, a bar for each interval."""
    figure, axis = plt.subplots(figsize=(8.5, 5), layout="constrained")
    _draw(axis, curves)
    last = max(x for curve in curves.values() for x, _ in curve)
    ticks = [2**e for e in range(3, 31, 1 if last < 2**12 else 2) if 2**e <= 2 * last]
    axis.set_xticks(ticks, [tokens(n) for n in ticks])
    axis.set_xlabel("position in the document, tokens")
    axis.set_ylabel("loss, nats per token")
    _finish(figure, axis, path, title)


def _draw(axis: Axes, curves: Curves) -> None:
    # Side by side, or equal results would hide each other.
    for i, (name, points) in enumerate(curves.items()):
        if not points:
            continue
        shift = 1.04 ** (i - (len(curves) - 1) / 2)
        values = [e["value"] for _, e in points]
        low = [0.0 if e["low"] is None else e["value"] - e["low"] for _, e in points]
        high = [0.0 if e["high"] is None else e["high"] - e["value"] for _, e in points]
        axis.errorbar(
            [x * shift for x, _ in points],
            values,
            yerr=[low, high],
            label=name,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            ms=5,
            lw=1.8,
            capsize=3,
            elinewidth=1,
        )
    axis.set_xscale("log", base=2)
    axis.minorticks_off()
    axis.grid(which="major", color="#e6e8eb")
    axis.set_axisbelow(True)


def _finish(figure: Any, axis: Axes, path: Path, title: str) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=min(len(labels), int(figure.get_figwidth() / 1.7)),
            fontsize=9,
        )
    figure.suptitle(title + (f", attention: {labels[0]}" if len(labels) == 1 else ""), fontsize=12)
    figure.savefig(path, dpi=130)
    plt.close(figure)
