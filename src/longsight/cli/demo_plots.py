"""The demo's two pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only, no window
from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

from longsight.cli.demo_dense import DensePrice
from longsight.engine import Selection

ROWS = 32  # tokens of the answer that a picture shows
BLUE, ORANGE, GREEN, GREY = "#2563a8", "#d9730d", "#2e7d4f", "#8a8f98"


def plot_selection(
    path: Path,
    selections: Sequence[Selection],
    answer: Sequence[str],
    *,
    tokens: int,
    block_size: int,
    needle: tuple[int, int],
) -> None:
    """Blocks that each layer and group chose for each token of the answer, over the whole context.

    answer: the text of each token; those after ROWS are left out. needle: (first, one past last) token.
    """
    answer = answer[:ROWS]
    lanes = sorted({(s.layer, g) for s in selections for g in range(len(s.blocks))})
    figure, axes = plt.subplots(
        len(lanes),
        1,
        figsize=(11, 1.4 + max(2.5, 0.2 * len(answer)) * len(lanes)),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    total = -(-tokens // block_size)
    # A block in a million tokens is a tenth of a pixel or less: widen it, about its middle, until it can be seen.
    width = max(block_size, 0.003 * tokens)
    edge = 0.3 if width == block_size else 0  # edges of bars that overlap would wash each other out
    end = max([tokens, *((b + 1) * block_size for s in selections for group in s.blocks for b in group)])
    for axis, (layer, group) in zip(axes[:, 0], lanes, strict=True):
        axis.axvspan(needle[0], needle[1], color=ORANGE, lw=1.2, alpha=0.7, zorder=0)
        for s in selections:
            if s.layer != layer or s.token_index >= len(answer):
                continue
            bars = [((b + 0.5) * block_size - width / 2, width) for b in s.blocks[group]]
            axis.broken_barh(bars, (s.token_index - 0.22, 0.44), facecolor=BLUE, edgecolor="white", lw=edge)
        axis.set_ylim(len(answer) - 0.4, -0.6)
        axis.set_yticks(range(len(answer)), [_visible(token) for token in answer], family="monospace")
        axis.set_title(f"layer {layer}, group {group}", loc="left", fontsize=10)
        axis.set_title(f"needle at token {needle[0]:,}", loc="right", fontsize=10, color=ORANGE)
        axis.set_ylabel("answer token")
        axis.grid(axis="y", color="#e6e8eb", lw=0.8)
        axis.set_axisbelow(True)
    axes[-1, 0].set_xlim(-0.01 * end, 1.01 * end)
    axes[-1, 0].xaxis.set_major_formatter(EngFormatter(sep=""))
    axes[-1, 0].set_xlabel("position in the context, tokens")
    figure.suptitle(
        f"Blocks read for each token of the answer: {_most(selections)} of {total:,} per layer and group",
        fontsize=12,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_time(
    path: Path,
    measured: Sequence[tuple[int, float]],
    dense: DensePrice,
    *,
    tokens: int,
    answered: tuple[int, float],
    layers_read: str,
) -> None:
    """Seconds per prompt token against context: this run beside dense attention of one layer.

    measured, answered: (mean context, seconds per token) of prefill chunks and of decode. layers_read: the layers that
    attend in prefill, in words.
    """
    figure, axis = plt.subplots(figsize=(9.5, 5.4), layout="constrained")
    contexts = [c for c, _ in measured]
    axis.plot(
        contexts,
        [1e6 * s for _, s in measured],
        color=BLUE,
        lw=2,
        label=f"MSA prefill: attention of {layers_read}, and everything else (measured)",
    )
    grid = [max(tokens * i // 200, dense.points[0][0]) for i in range(201)]
    axis.plot(
        grid,
        [1e6 * dense.seconds_per_token(c) for c in grid],
        color=ORANGE,
        lw=2,
        ls="--",
        label="dense prefill: attention of one layer alone (extrapolated by FLOPs)",
    )
    axis.plot(
        [c for c, _ in dense.points],
        [1e6 * s for _, s in dense.points],
        "o",
        color=ORANGE,
        ms=7,
        label="dense prefill: the same (measured)",
    )
    axis.plot(
        [answered[0]],
        [1e6 * answered[1]],
        "D",
        color=GREEN,
        ms=8,
        label="MSA decode: all layers and everything else (measured)",
    )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    ticks = [2**e for e in range(10, 41) if contexts[0] / 2 <= 2**e <= tokens * 1.01]
    axis.set_xticks(ticks, [f"{t // 1024}K" if t < 1 << 20 else f"{t >> 20}M" for t in ticks])
    axis.set_xlabel("tokens already in the context")
    axis.set_ylabel("microseconds per token")
    axis.grid(which="major", color="#e6e8eb")
    axis.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)  # beside the axes, so that it hides no point
    axis.set_title("Time per token against context length", loc="left")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _visible(token: str) -> str:
    """A token's text; special ones, which end an answer, have none."""
    return token.replace(" ", "␣").replace("\n", "⏎") or "(end)"


def _most(selections: Sequence[Selection]) -> int:
    return max((len(group) for s in selections for group in s.blocks), default=0)
