"""Draws docs/images/msa.png: what one token reads under dense attention and under MiniMax Sparse Attention.

    python docs/figures/msa.py

The blocks are an example, not a measurement.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only, no window
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

OUT = Path(__file__).parents[1] / "images" / "msa.png"
BLUE, ORANGE, GREY, PALE = "#2563a8", "#d9730d", "#8a8f98", "#e8eaee"
BLOCKS, PER_BLOCK = 16, 4
SCORES = (0.2, 0.35, 0.9, 0.1, 0.3, 0.25, 0.15, 0.75, 0.4, 0.2, 0.1, 0.3, 0.65, 0.2, 0.35, 0.5)
CHOSEN = (2, 7, 12, 15)  # the three highest scores, and the token's own block
GAP = 0.12


def main() -> None:
    figure, (dense, index, sparse) = plt.subplots(
        3, 1, figsize=(10, 5), gridspec_kw={"height_ratios": [1, 1.5, 1.3]}, layout="constrained"
    )
    tokens(dense, range(BLOCKS), BLUE)
    title(dense, "Dense attention: the newest token reads every token before it")
    scores(index)
    title(index, "1. The index branch gives each block a score, with one small key per token")
    tokens(sparse, CHOSEN, BLUE)
    title(sparse, "2. Attention reads the best blocks and the token's own, exactly, and no others")
    for block in CHOSEN:
        name = "own block" if block == BLOCKS - 1 else f"block {block}"
        sparse.text(block + 0.5, -0.35, name, ha="center", va="top", fontsize=9)
    sparse.set_ylim(-0.9, 1.1)
    figure.get_layout_engine().set(hspace=0.12)
    figure.savefig(OUT, dpi=120)


def tokens(axes: Axes, read: range | tuple[int, ...], colour: str) -> None:
    width = (1 - GAP) / PER_BLOCK
    for block in range(BLOCKS):
        for i in range(PER_BLOCK):
            box = Rectangle(
                (block + GAP / 2 + i * width, 0), width * 0.75, 0.9, color=colour if block in read else PALE
            )
            axes.add_patch(box)
    axes.set_ylim(-0.1, 1.1)


def scores(axes: Axes) -> None:
    for block, score in enumerate(SCORES):
        colour = ORANGE if block in CHOSEN else GREY
        axes.add_patch(
            Rectangle((block + GAP / 2, 0), 1 - GAP, score, color=colour, alpha=1 if block in CHOSEN else 0.45)
        )
    axes.set_ylim(0, 1.1)


def title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=11, pad=8)
    axes.set_xlim(-0.1, BLOCKS + 0.3)
    axes.axis("off")


if __name__ == "__main__":
    main()
