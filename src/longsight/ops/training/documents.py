"""Which packed rows belong to which document, for training: no pages, no cache, every row is a query and a key."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from longsight.ops.errors import UnsupportedError


@dataclass(frozen=True)
class Documents:
    """S documents packed one after the other into T rows; no row sees another document.

    cu_seqlens: int32 [S + 1] on the CPU; document s owns rows cu_seqlens[s] .. cu_seqlens[s + 1] - 1. The block grid
    of each document starts at its own first row, whatever positions RoPE was given.
    """

    cu_seqlens: Tensor

    def __post_init__(self) -> None:
        cu = self.cu_seqlens
        if cu.dtype != torch.int32 or cu.ndim != 1 or cu.shape[0] < 1 or cu.device.type != "cpu":
            raise UnsupportedError(f"cu_seqlens must be int32 [S + 1] on the CPU, got {cu.dtype} {list(cu.shape)}")
        if not cu.is_contiguous():
            raise UnsupportedError(f"cu_seqlens must be contiguous, got a stride of {cu.stride(0)}")
        if cu[0] != 0 or (cu.diff() < 0).any():
            raise UnsupportedError("cu_seqlens must start at 0 and never fall")

    @classmethod
    def of_lengths(cls, lengths: Sequence[int]) -> Documents:
        """From the number of rows of each document."""
        rows, most = sum(lengths), torch.iinfo(torch.int32).max
        if rows > most:
            raise UnsupportedError(f"{rows} packed rows are more than the {most} that int32 counts")
        return cls(torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0).to(torch.int32))

    @cached_property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """(first row, row past the last) of each document."""
        cu = self.cu_seqlens.tolist()
        return tuple(itertools.pairwise(cu))

    @property
    def rows(self) -> int:
        """Packed rows T."""
        return int(self.cu_seqlens[-1])

    @cached_property
    def positions(self) -> Tensor:
        """int32 [T]: the place of each row in its own document, which is what the block grid counts."""
        starts = self.cu_seqlens[:-1].repeat_interleave(self.cu_seqlens.diff())
        return torch.arange(self.rows, dtype=torch.int32) - starts
