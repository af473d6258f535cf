"""A picture of a run, drawn from its CSV log."""

from __future__ import annotations

import csv
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import matplotlib

matplotlib.use("Agg")  # files only, no window
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from longsight.train.checkpoint import replace

Rows = list[dict[str, str]]
SHADES = ("#f4f6f8", "#ffffff")  # of stages, in turn
POINTS = 200  # a longer run is drawn as means over a 200th of it, with the steps themselves faint behind


@dataclass(frozen=True)
class Panel:
    """One pair of axes. columns: column -> label; families: prefix of columns -> what its label puts for the prefix."""

    title: str
    columns: dict[str, str]
    families: dict[str, str]
    log: bool


PANELS = (
    Panel("loss, nats per target", {"loss": "training", "validation": "held out"}, {}, True),
    Panel("accuracy", {"accuracy": "training", "validation_accuracy": "held out"}, {}, False),
    Panel("KL of the index branch, nats", {}, {"kl_": "layer "}, True),
    Panel("attention mass inside the chosen blocks", {}, {"captured_": "layer "}, False),
    Panel("gradient norm before clipping", {}, {"norm_": ""}, True),
    Panel("learning rate", {}, {"lr_": ""}, True),
)


def plot_curves(log: Path, image: Path) -> None:
    """Draw a run's CSV file to `image` (PNG), replacing it in one step. Cells that are empty or 0 on a logarithmic axis
    are left out."""
    if not log.exists():
        return
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return
    figure, axes = plt.subplots(3, 2, figsize=(12, 10), sharex=True, layout="constrained")
    for axis, panel in zip(axes.flat, PANELS, strict=True):
        _draw(axis, panel, rows)
    for axis in axes[0]:
        _name_stages(axis, rows)
    for axis in axes[-1]:
        axis.set_xlabel("step")

    def write(file: BinaryIO) -> None:
        figure.savefig(file, format="png", dpi=110)

    replace(image, write)
    plt.close(figure)


def _draw(axis: Axes, panel: Panel, rows: Rows) -> None:
    lines: dict[tuple[tuple[int, float], ...], list[str]] = {}  # columns of the same values are one line
    for column in rows[0]:
        prefix = next((p for p in panel.families if column.startswith(p)), None)
        label = panel.columns.get(column) if prefix is None else panel.families[prefix] + column.removeprefix(prefix)
        points = _points(rows, column, panel.log) if label is not None else ()
        if points and label is not None:
            lines.setdefault(points, []).append(label.replace("_", " "))
    for points, labels in lines.items():
        _line(axis, points, ", ".join(labels), len(rows))
    if panel.log and lines:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    elif not panel.log:
        axis.set_ylim(0, 1.1)  # room for the names of stages above 1
    for index, (start, end, _) in enumerate(_stages(rows)):
        axis.axvspan(start - 0.5, end + 0.5, color=SHADES[index % 2], zorder=0)
    axis.grid(color="#e6e8eb", lw=0.8)
    axis.set_axisbelow(True)
    axis.set_title(panel.title, loc="left", fontsize=11)
    if lines:
        axis.legend(fontsize=8, ncols=1 + len(lines) // 8)


def _points(rows: Rows, column: str, positive: bool) -> tuple[tuple[int, float], ...]:
    """(step, value) where there is one that can be drawn."""
    points = ((int(row["step"]), float(row[column])) for row in rows if row.get(column))
    return tuple((x, y) for x, y in points if math.isfinite(y) and (y > 0 or not positive))


def _line(axis: Axes, points: tuple[tuple[int, float], ...], label: str, rows: int) -> None:
    """A line with a gap wherever steps are missing; what is measured now and then gets marks instead of gaps."""
    steps, values = zip(*points, strict=True)
    if len(points) * 4 < steps[-1] - steps[0]:
        axis.plot(steps, values, marker="o", ms=3, lw=1.2, label=label)
        return
    window, colour = max(1, rows // POINTS), None
    for run in _runs(points):
        xs, ys = zip(*run, strict=True)
        (line,) = axis.plot(xs, _running_mean(ys, window), lw=1.3, color=colour, label=label if colour is None else "_")
        colour = line.get_color()
        if window > 1:
            axis.plot(xs, ys, lw=0.6, alpha=0.25, color=colour)


def _runs(points: tuple[tuple[int, float], ...]) -> list[list[tuple[int, float]]]:
    """Stretches of steps without a gap."""
    numbered = itertools.groupby(enumerate(points), key=lambda item: item[1][0] - item[0])
    return [[point for _, point in group] for _, group in numbered]


def _stages(rows: Rows) -> list[tuple[int, int, str]]:
    """(first step, last step, name) of each stage."""
    groups = [(name, list(group)) for name, group in itertools.groupby(rows, key=lambda row: row["stage"])]
    return [(int(group[0]["step"]), int(group[-1]["step"]), name) for name, group in groups]


def _name_stages(axis: Axes, rows: Rows) -> None:
    for start, end, name in _stages(rows):
        axis.annotate(
            name,
            ((start + end) / 2, 0.985),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="top",
            fontsize=8,
            color="#5f6670",
        )


def _running_mean(values: tuple[float, ...], window: int) -> list[float]:
    """The mean of up to `window` values that end at each place."""
    sums = list(itertools.accumulate(values, initial=0.0))
    return [(sums[i] - sums[max(0, i - window)]) / min(i, window) for i in range(1, len(sums))]
