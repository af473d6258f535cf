"""Position skipping: short rows in which RoPE sees the positions of long ones."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.int64]]
MAX_GAPS = 4


def skipped(rng: np.random.Generator, length: int, reach: int) -> Array:
    """int64 [length]: rising positions from 0 of one document, below `reach`, with 1 to 4 random gaps.

    The gaps together are log-uniform in [1, reach - length] and fall between tokens, shared out at random. Without room
    for a gap (length < 2 or reach <= length) positions are 0 .. length - 1. Relative places inside a stretch are kept,
    and blocks keep counting tokens: only RoPE reads these.
    """
    positions = np.arange(length, dtype=np.int64)
    if length < 2 or reach <= length:
        return positions
    # The floor of a value below most + 1, which is what makes `most` itself possible.
    most = reach - length
    total = min(int(np.exp(rng.uniform(0.0, np.log(most + 1)))), most)
    gaps = int(rng.integers(1, MAX_GAPS + 1))
    shares = np.diff(np.sort(rng.integers(0, total, gaps - 1, endpoint=True)), prepend=0, append=total)
    for place, gap in zip(rng.integers(1, length, gaps), shares, strict=True):
        positions[place:] += gap
    return positions
