"""Has an answer got stuck? Judged by its tokens alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHORTEST = 96  # tokens that a piece repeated must fill before an answer counts as stuck
LONGEST_PERIOD = 32


def is_stuck(output: Sequence[int], tokens: int = SHORTEST) -> bool:
    """Whether an answer ends in the same piece of at most 32 tokens, over and over, for `tokens` tokens or more.

    A table's rule or a run of blanks may look like that too: a rate that rises is what to look at, not one answer.
    """
    if len(output) < tokens:
        return False
    tail = np.asarray(output[-(tokens + LONGEST_PERIOD) :])
    for period in range(1, LONGEST_PERIOD + 1):
        differs = np.flatnonzero(tail[period:] != tail[:-period])
        if len(tail) - (differs[-1] + period + 1 if len(differs) else 0) >= tokens:
            return True
    return False
