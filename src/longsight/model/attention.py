"""Attention of one layer: fused projections, per-head norms and RoPE, the page write, block selection, the main branch.

Legend: T packed rows, h hidden size, H_q query heads, H_kv key/value heads (and index heads), D head dim, D_idx index
dim, k blocks kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longsight.ops import Backend, Batch, LayerPages, PackedLinear

# Sees (layer, ids int32 [T, H_kv, k]) of each sparse layer and may return the ids to use instead.
OnSelect = Callable[[int, Tensor], Tensor | None]


@dataclass(frozen=True)
class Step:
    """What all layers share in one forward pass. cos, sin: fp32 [T, rotary_dim / 2]."""

    backend: Backend
    batch: Batch
    cos: Tensor
    sin: Tensor
    on_select: OnSelect | None = None

    def at(self, rows: Tensor) -> Step:
        """The same step for some of its rows only (int64 [R]), each a sequence of one query token."""
        batch = self.batch
        return Step(
            self.backend,
            Batch(
                torch.arange(rows.shape[0] + 1, dtype=torch.int32),
                batch.positions[rows] + 1,
                batch.block_table[batch.row_sequence[rows].long()],
            ),
            self.cos[rows],
            self.sin[rows],
        )


@dataclass(frozen=True)
class Indexer:
    """The index branch's norms and selection rule. q_norm, k_norm: [D_idx]."""

    q_norm: Tensor
    k_norm: Tensor
    topk: int
    local_blocks: int
    init_blocks: int


@dataclass(frozen=True)
class Attention:
    """qkv is [q | k | v], in a sparse layer [q | k | v | index q | index k]; `widths` are their sizes in that order."""

    layer: int
    qkv: PackedLinear
    out: PackedLinear
    widths: Sequence[int]
    q_norm: Tensor
    k_norm: Tensor
    head_dim: int
    eps: float
    indexer: Indexer | None

    def project(self, x: Tensor, step: Step, pages: LayerPages) -> tuple[Tensor, Tensor | None]:
        """x [T, h] -> q [T, H_q * D] and index q [T, H_kv * D_idx], both before norm and RoPE. Keys, values and index
        keys go to their pages."""
        backend = step.backend
        q, k, v, *index = backend.linear(x, self.qkv).split(self.widths, 1)
        heads = (x.shape[0], -1, self.head_dim)
        k = backend.norm_rope(k.view(heads), self.k_norm, step.cos, step.sin, self.eps)
        if self.indexer is None:
            backend.append_kv(pages, step.batch, k, v.view(heads), None)
            return q, None
        index_q, index_k = index
        index_k = backend.norm_rope(index_k[:, None], self.indexer.k_norm, step.cos, step.sin, self.eps)
        backend.append_kv(pages, step.batch, k, v.view(heads), index_k[:, 0])
        return q, index_q

    def attend(self, q: Tensor, index_q: Tensor | None, step: Step, pages: LayerPages) -> Tensor:
        """What `project` returned (or some rows of it, with their step) -> [T, h]."""
        backend, rows = step.backend, q.shape[0]
        q = backend.norm_rope(q.view(rows, -1, self.head_dim), self.q_norm, step.cos, step.sin, self.eps)
        if self.indexer is None or index_q is None:
            y, _ = backend.dense_attention(q, pages, step.batch)
        else:
            y, _ = backend.sparse_attention(q, pages, step.batch, self._select(index_q, self.indexer, step, pages))
        return backend.linear(y.view(rows, -1), self.out)

    def _select(self, index_q: Tensor, indexer: Indexer, step: Step, pages: LayerPages) -> Tensor:
        index_q = index_q.view(index_q.shape[0], -1, indexer.q_norm.shape[0])
        index_q = step.backend.norm_rope(index_q, indexer.q_norm, step.cos, step.sin, self.eps)
        ids = step.backend.select_blocks(
            index_q,
            pages,
            step.batch,
            topk=indexer.topk,
            local_blocks=indexer.local_blocks,
            init_blocks=indexer.init_blocks,
        )
        replaced = step.on_select(self.layer, ids) if step.on_select is not None else None
        return ids if replaced is None else replaced
