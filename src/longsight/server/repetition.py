"""Has an answer got stuck? Judged by its tokens alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TAIL = 256  # tokens at an answer's end that are looked at,
SHORTEST = 96  # if there are so many
LONGEST_PERIOD = 32


def is_stuck(output: Sequence[int]) -> bool:
    """Whether an answer ends in the same piece of at most 32 tokens, over and over, for 96 tokens or more.

    A table's rule or a run of blanks may look like that too: a rate that rises is what to look at, not one answer.
    """
    if len(output) < SHORTEST:
        return False
    tail = np.asarray(output[-TAIL:])
    for period in range(1, LONGEST_PERIOD + 1):
        differs = np.flatnonzero(tail[period:] != tail[:-period])
        if len(tail) - (differs[-1] + period + 1 if len(differs) else 0) >= SHORTEST:
            return True
    return False
