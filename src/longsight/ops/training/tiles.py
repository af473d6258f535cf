"""How the reference walks a document: key block by key block, and for each the query rows that attend to it.

Whatever the length, a tensor of scores or probabilities has at most TILE elements (or one row of one block, should a
block be longer than that).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

TILE = 1 << 18
DENSE_KEYS = 256  # keys in a tile of the dense operators


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """fp64 for fp64 inputs, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def row_limit(*sizes: int) -> int:
    """Rows that fit a tile when each takes the product of `sizes`."""
    return max(1, TILE // max(1, math.prod(sizes)))


def tiles(
    ids: Tensor | None, rows: int, block_size: int, heads: int, dim: int, device: torch.device
) -> Iterator[tuple[Tensor, slice, Tensor]]:
    """(query rows int64 [R], their keys, hidden bool [R, C]) of one document and group, in a fixed order.

    ids [rows, k] are the chosen blocks, None for all visible ones. A row comes at most once per block and sees at least
    the block's first token; `hidden` marks the keys after it. heads, dim: what a row carries, to limit R.
    """
    if ids is None:
        block_size = DENSE_KEYS
    choosers = None if ids is None else _choosers(ids, -(-rows // block_size))
    for block, start in enumerate(range(0, rows, block_size)):
        keys = slice(start, min(start + block_size, rows))
        here = torch.arange(start, rows, device=device) if choosers is None else choosers[block]
        tokens = torch.arange(keys.start, keys.stop, device=device)
        for part in here.split(row_limit(heads, max(block_size, dim))):
            if part.numel():
                yield part, keys, tokens > part[:, None]


def _choosers(ids: Tensor, blocks: int) -> tuple[Tensor, ...]:
    """The inverse of ids [rows, k]: for each block the rows that chose it, ascending."""
    order = ids.flatten().sort(stable=True)
    counts = torch.bincount(order.values + 1, minlength=blocks + 1).tolist()
    by_block: tuple[Tensor, ...] = (order.indices // ids.shape[1]).split(counts)
    return by_block[1:]


class OnlineSoftmax:
    """Running maximum and sum of exponentials of scores that come tile by tile, for `shape` rows."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.top = torch.full(shape, -math.inf, dtype=dtype, device=device)
        self.sum = torch.zeros(shape, dtype=dtype, device=device)

    def add(self, rows: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Take scores [R, ..., C] of `rows`; exp(scores - top) and the factor by which what came before shrinks."""
        top = torch.maximum(self.top[rows], scores.amax(-1))
        weights, shrink = (scores - top[..., None]).exp(), (self.top[rows] - top).exp()
        self.top[rows], self.sum[rows] = top, self.sum[rows] * shrink + weights.sum(-1)
        return weights, shrink

    def lse(self) -> Tensor:
        """log(sum(exp(scores))), -inf for a row without scores."""
        return self.top + self.sum.log()
