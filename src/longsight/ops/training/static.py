"""A fixed pattern of blocks, to compare the learned choice with: a local window, anchors at a stride, random blocks.

No index keys and no scan, the same main branch and the same budget: the floor for quality and the ceiling for speed.
Legend: T packed rows, H_kv groups, k blocks kept, own = the block that a row lies in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from longsight.ops.errors import UnsupportedError

CHUNK_ROWS = 1 << 14  # keeps the intermediate tensors in the cache
_NONE = torch.iinfo(torch.int32).max  # sorts behind every block id
_WORD = 0xFFFFFFFF


class Rows(Protocol):
    """`Documents` or `Batch`: anything that knows where each packed row lies in its own sequence."""

    @property
    def positions(self) -> Tensor:
        """int32 [T], negative for padding rows."""
        ...


@dataclass(frozen=True)
class StaticPolicy:
    """window: blocks own - window + 1 .. own. anchor_stride: blocks 0, s, 2s, ... up to own, the nearest first. random:
    blocks drawn without replacement from the rest, by a hash of (seed, layer, group, position).

    Raises UnsupportedError for numbers out of range.
    """

    window: int
    anchor_stride: int
    random: int
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("window", 1), ("anchor_stride", 1), ("random", 0)):
            if getattr(self, name) < least:
                raise UnsupportedError(f"{name} is {getattr(self, name)}; it must be at least {least}")

    @classmethod
    def spread(
        cls,
        length: int,
        *,
        topk: int,
        block_size: int,
        window: int | None = None,
        anchor_stride: int | None = None,
        random: int | None = None,
        seed: int = 0,
    ) -> StaticPolicy:
        """Of what is not given: half of topk local, a quarter random, the rest anchors spread over `length` tokens."""
        window = max(topk // 2, 1) if window is None else window
        random = topk // 4 if random is None else random
        if anchor_stride is None:
            anchors = max(topk - window - random, 1)
            anchor_stride = max(-(-length // (block_size * anchors)), 1)
        return cls(window, anchor_stride, random, seed)

    def blocks(self, rows: Rows, *, block_size: int, topk: int, kv_heads: int, layer: int) -> Tensor:
        """int32 [T, H_kv, k] on the device of `rows.positions`: see `static_blocks`."""
        if topk < 1 or block_size < 1:
            raise UnsupportedError(f"topk {topk} and block_size {block_size} must be at least 1")
        positions = rows.positions
        out = torch.empty((positions.shape[0], kv_heads, topk), dtype=torch.int32, device=positions.device)
        # Groups differ in their random blocks only.
        key = torch.zeros((), dtype=torch.int64, device=positions.device)
        for word in (self.seed & _WORD, self.seed >> 32 & _WORD, layer):
            key = _mix(key, word)
        groups = _mix(key, torch.arange(kv_heads if self.random else 1, device=positions.device))
        for start in range(0, positions.shape[0], CHUNK_ROWS):
            part = positions[start : start + CHUNK_ROWS].long()
            out[start : start + CHUNK_ROWS] = self._choose(part[:, None], groups[None], block_size, topk)
        return out

    def _choose(self, position: Tensor, key: Tensor, block_size: int, topk: int) -> Tensor:
        """position int64 [R, 1], key int64 [1, H] -> int32 [R, H, k]."""
        own = position.div(block_size, rounding_mode="floor")
        slots = torch.arange(topk, device=position.device)
        local = min(self.window, topk)
        first = own - local + 1  # of the window
        anchors = (first + self.anchor_stride - 1).div(self.anchor_stride, rounding_mode="floor")  # before the window
        kept = anchors.clamp(max=topk - local)
        # Slots: the anchors kept, ascending, then the window, then what is drawn; sorted at the end.
        ids = (anchors - kept + slots) * self.anchor_stride
        ids = torch.where(slots < kept, ids, first + slots - kept)
        ids = torch.where(slots < kept + local, ids, _NONE)
        ids = torch.where(own < topk, torch.where(slots <= own, slots, _NONE), ids)
        ids = torch.where(own < 0, _NONE, ids)[:, None].expand(-1, key.shape[1], -1)
        if self.random and local < topk:
            rest = first - anchors
            free = (topk - local - kept).clamp(max=self.random)
            # Where every visible block is chosen nothing is left to draw.
            draws = torch.minimum(free, rest) * (own >= topk)
            drawn = self._draw(_mix(key, position), rest, draws)
            ids = torch.cat((ids, drawn), -1).int().sort(-1).values[..., :topk]
        return ids.int().masked_fill(ids == _NONE, -1)

    def _draw(self, key: Tensor, rest: Tensor, draws: Tensor) -> Tensor:
        """The `draws` [R, 1] blocks that each row takes from its `rest` [R, 1], key [R, H] -> int64 [R, H, most].

        Floyd's sampling: every set is equally likely and each draw takes one number. The rest are the blocks before
        the window that are no anchors, so the n-th of them is known by arithmetic.
        """
        most = int(draws.max()) if draws.numel() else 0
        taken = torch.full((*key.shape, most), -1, dtype=torch.int64, device=key.device)
        for i in range(most):
            last = rest - draws + i
            rank = _mix(key, i) * (last + 1) >> 32
            again = (taken[..., :i] == rank[..., None]).any(-1)
            taken[..., i] = torch.where(i < draws, torch.where(again, last, rank), -1)
        block = taken + taken.div(max(self.anchor_stride - 1, 1), rounding_mode="floor") + 1
        return torch.where(taken < 0, _NONE, block)


def static_blocks(
    rows: Rows,
    *,
    block_size: int,
    topk: int,
    kv_heads: int,
    window: int,
    anchor_stride: int,
    random: int,
    seed: int,
    layer: int,
) -> Tensor:
    """The pattern's choice for each row of packed `Documents` or of a paged `Batch`: int32 [T, H_kv, k].

    As from `select_blocks`, ids ascend, then -1; a padding row has none. Where no more than topk blocks are visible,
    all are chosen. Else window, anchors and random blocks, in this order, until topk is reached; if all of them come to
    less, so do the ids (random = topk fills up). A row's choice depends on its place in its sequence alone, so prefill
    and decode agree. Raises UnsupportedError for numbers out of range.
    """
    policy = StaticPolicy(window, anchor_stride, random, seed)
    return policy.blocks(rows, block_size=block_size, topk=topk, kv_heads=kv_heads, layer=layer)


def _mix(key: Tensor, word: Tensor | int) -> Tensor:
    """Hash two 32-bit numbers, held in int64, into one: a weighted sum through the lowbias32 finaliser.

    A product that leaves 64 bits keeps the low 32, which are all that count.
    """
    x = key * 0x9E3779B1 + word + 1 & _WORD
    x = (x ^ x >> 16) * 0x7FEB352D & _WORD
    x = (x ^ x >> 15) * 0x846CA68B & _WORD
    return x ^ x >> 16
