"""Which rows of a step belong to which sequence, and where the pages of each sequence are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from longsight.ops.errors import UnsupportedError


@dataclass(frozen=True)
class Batch:
    """One step's packed rows. The only state an attention operator sees besides its tensors.

    Rows of sequence s are ``cu_seqlens[s] .. cu_seqlens[s + 1] - 1``; they are the causal suffix of its ``kv_lens[s]``
    tokens (the step's own tokens included), so row t of the sequence sits at position ``kv_lens[s] - q_len + t``. A
    negative position is a padding row: it selects nothing, its output is 0 and its log-sum-exp -inf.

    cu_seqlens   int32 [S + 1]
    kv_lens      int32 [S]
    block_table  int32 [S, max_blocks]   page id of each block of a sequence; entries past the last block are ignored
    """

    cu_seqlens: Tensor
    kv_lens: Tensor
    block_table: Tensor
    _page_range: dict[int, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        sequences = self.kv_lens.shape[0]
        for name, dims in (("cu_seqlens", 1), ("kv_lens", 1), ("block_table", 2)):
            tensor = getattr(self, name)
            if tensor.dtype != torch.int32 or tensor.ndim != dims or not tensor.is_contiguous():
                raise UnsupportedError(
                    f"{name} must be a contiguous int32 tensor of {dims} dimension(s), got {tensor.dtype}"
                )
        if self.cu_seqlens.shape[0] != sequences + 1 or self.block_table.shape[0] != sequences:
            raise UnsupportedError(
                f"{sequences} sequences need cu_seqlens [{sequences + 1}] and block_table [{sequences}, ...], got "
                f"{list(self.cu_seqlens.shape)} and {list(self.block_table.shape)}"
            )

    @classmethod
    def build(cls, sequences: Sequence[tuple[int, int, Sequence[int]]]) -> Batch:
        """From (q_len, kv_len, page ids) per sequence. For tests and small callers; an engine keeps its own table."""
        cu = [0]
        width = max((len(pages) for _, _, pages in sequences), default=0)
        table = torch.full((len(sequences), max(width, 1)), -1, dtype=torch.int32)
        for i, (q_len, _, pages) in enumerate(sequences):
            cu.append(cu[-1] + q_len)
            table[i, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
        kv_lens = [kv_len for _, kv_len, _ in sequences]
        return cls(torch.tensor(cu, dtype=torch.int32), torch.tensor(kv_lens, dtype=torch.int32), table)

    @classmethod
    def trusted(cls, cu_seqlens: Tensor, kv_lens: Tensor, block_table: Tensor, block_size: int, pages: int) -> Batch:
        """A batch by the word of the pool's owner: right shapes, a table wide enough, pages 0 .. pages - 1 only."""
        batch = object.__new__(cls)
        range_known = {block_size: (0, pages - 1)}
        # Not through the checks of __init__: they are a third of the cost of making a batch, every step.
        batch.__dict__.update(cu_seqlens=cu_seqlens, kv_lens=kv_lens, block_table=block_table, _page_range=range_known)
        return batch

    @cached_property
    def rows(self) -> int:
        """Packed query rows T."""
        return int(self.cu_seqlens[-1])

    @cached_property
    def row_sequence(self) -> Tensor:
        """int32 [T]: the sequence of each row."""
        sequences = np.arange(self.kv_lens.shape[0], dtype=np.int32)
        return torch.from_numpy(np.repeat(sequences, np.diff(self.cu_seqlens.numpy())))

    @cached_property
    def positions(self) -> Tensor:
        """int32 [T]: the absolute position of each row in its sequence, negative for padding rows."""
        # In numpy: five torch operators on a few numbers would take a tenth of a decode step's Python.
        starts = self.cu_seqlens.numpy()
        rows = np.arange(starts[-1], dtype=np.int32)
        return torch.from_numpy(rows + np.repeat(self.kv_lens.numpy() - starts[1:], np.diff(starts)))

    def pages_of(self, sequence: int, block_size: int) -> Tensor:
        """int64 page ids of one sequence's blocks, in order."""
        blocks = -(-int(self.kv_lens[sequence]) // block_size)
        return self.block_table[sequence, :blocks].long()

    def check_pages(self, block_size: int, pages: int) -> None:
        """Raise UnsupportedError unless every page a kernel will follow exists in a pool of `pages` pages."""
        if block_size not in self._page_range:
            self._page_range[block_size] = self._used_pages(block_size)
        lowest, highest = self._page_range[block_size]
        if lowest < 0 or highest >= pages:
            raise UnsupportedError(f"block_table names pages {lowest}..{highest}; the pool holds 0..{pages - 1}")

    def _used_pages(self, block_size: int) -> tuple[int, int]:
        """The lowest and highest page id in use; a table too narrow for its sequences raises UnsupportedError."""
        lowest, highest = 0, -1
        for sequence, kv_len in enumerate(self.kv_lens.tolist()):
            blocks = -(-kv_len // block_size)
            if blocks > self.block_table.shape[1]:
                raise UnsupportedError(
                    f"sequence {sequence} has {blocks} blocks, its block_table row {self.block_table.shape[1]}"
                )
            if blocks > 0:
                low, high = self.block_table[sequence, :blocks].aminmax()
                lowest, highest = min(lowest, int(low)), max(highest, int(high))
        return lowest, highest
