"""Random numbers by address: a stream for every (seed, purpose, index), drawn in any order, on any process."""

from __future__ import annotations

import zlib

import numpy as np

MASK = (1 << 64) - 1


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A stream of its own for each argument list; up to three indices of 64 bits. Philox counts, so no stream overlaps
    another."""
    words = [0, *(i & MASK for i in index)]
    counter = np.array(words + [0] * (4 - len(words)), dtype=np.uint64)
    key = np.array([seed & MASK, zlib.crc32(purpose.encode())], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))
