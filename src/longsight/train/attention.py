"""Attention of one layer with gradients: per-head norms and RoPE, the index branch, and what a mode makes of them.

Legend: T packed rows, h hidden size, H_q query heads, H_kv key/value heads (and index heads), D head dim, D_idx index
dim, k blocks kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longsight.model import ModelConfig
from longsight.ops.training import Documents, TrainingBackend
from longsight.ops.training.rows_kl import rows_kl
from longsight.train.config import AttentionMode
from longsight.train.layers import HeadNorm, Linear

# dense          every key; the index branch is idle
# warmup         every key; the index branch learns from all of them, and what its blocks would catch is measured
# sparse         the chosen blocks; the index branch learns on them
# frozen-sparse  the chosen blocks; the index branch stays as it is
# static         blocks fixed by place; the index branch is idle
INDEXED: tuple[AttentionMode, ...] = ("warmup", "sparse", "frozen-sparse")


class KlRows(NamedTuple):
    """Rows int64 [N] whose KL is taken over every key, and the weight fp32 [N] that each has there."""

    rows: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Step:
    """What all layers share in one forward pass.

    cos, sin: fp32 [T, R/2]. kl_weight: fp32 [T], the weight of each row in the KL, or None for 1/T.
    kl_rows: rows that sparse layers compare over every key besides.
    captured: whether warm-up layers measure the attention mass inside the blocks they would choose. topk: blocks that
    each row and group keeps.
    """

    backend: TrainingBackend
    documents: Documents
    cos: Tensor
    sin: Tensor
    kl_weight: Tensor | None
    kl_rows: KlRows | None
    captured: bool
    topk: int


class Attended(NamedTuple):
    """y [T, h] in the activations' dtype; kl fp32 scalar and captured fp32 scalar where the mode has them."""

    y: Tensor
    kl: Tensor | None = None
    captured: Tensor | None = None


class Attention(nn.Module):
    """The main branch, and in a sparse layer the index branch beside it.

    The index branch reads the input without passing a gradient back, the KL's teacher is constant, and a selection has
    no gradient: the language-model loss never moves the index branch, the KL never moves anything else.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        h, dim, eps = config.hidden_size, config.head_dim, config.rms_norm_eps
        self.q_proj = Linear(h, config.num_heads * dim)
        self.k_proj, self.v_proj = Linear(h, config.num_kv_heads * dim), Linear(h, config.num_kv_heads * dim)
        self.o_proj = Linear(config.num_heads * dim, h)
        self.q_norm, self.k_norm = HeadNorm(dim, eps), HeadNorm(dim, eps)
        self.indexed = config.attention_kinds[layer] == "sparse"
        if self.indexed:
            self.index_q_proj = Linear(h, config.num_kv_heads * config.index_dim)
            self.index_k_proj = Linear(h, config.index_dim)
            self.index_q_norm, self.index_k_norm = HeadNorm(config.index_dim, eps), HeadNorm(config.index_dim, eps)
        self.config = config

    def forward(self, x: Tensor, step: Step, mode: AttentionMode, static_ids: Tensor | None) -> Attended:
        """x [T, h], already normed; static_ids int32 [T, H_kv, k] in mode "static", else None."""
        q = self.q_norm(self.q_proj(x), step.cos, step.sin)
        k = self.k_norm(self.k_proj(x), step.cos, step.sin)
        v = self.v_proj(x).unflatten(-1, (-1, self.config.head_dim))
        kl = captured = None
        backend, docs, block = step.backend, step.documents, self.config.block_size
        if mode == "dense":
            y, _ = backend.dense_attention(q, k, v, docs)
        elif mode == "static":
            assert static_ids is not None
            y, _ = backend.sparse_attention(q, k, v, static_ids, docs, block_size=block)
        elif mode == "warmup":
            y, lse = backend.dense_attention(q, k, v, docs)
            index_q, index_k = self.index(x, step)
            kl = backend.dense_kl(index_q, index_k, q.detach(), k.detach(), lse, docs, weight=step.kl_weight)
            if step.captured:
                captured = self._captured(index_q, index_k, q, k, v, lse, step)
        else:
            with torch.set_grad_enabled(mode == "sparse" and torch.is_grad_enabled()):
                index_q, index_k = self.index(x, step)
            ids = self.select(index_q, index_k, step)
            y, lse = backend.sparse_attention(q, k, v, ids, docs, block_size=block)
            if mode == "sparse":
                teacher = q.detach(), k.detach(), lse
                kl = backend.sparse_kl(index_q, index_k, *teacher, ids, docs, block_size=block, weight=step.kl_weight)
                if step.kl_rows is not None:
                    rows, weight = step.kl_rows
                    kl = kl + rows_kl(index_q[rows], index_k, q[rows], k, rows, docs, weight=weight)
        return Attended(self.o_proj(y.flatten(1)), kl, captured)

    def index(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """The index branch's queries [T, H_kv, D_idx] and keys [T, D_idx]; x gets no gradient from them."""
        x = x.detach()
        index_q = self.index_q_norm(self.index_q_proj(x), step.cos, step.sin)
        return index_q, self.index_k_norm(self.index_k_proj(x), step.cos, step.sin)[:, 0]

    @torch.no_grad()
    def select(self, index_q: Tensor, index_k: Tensor, step: Step) -> Tensor:
        """The blocks of every row and group, int32 [T, H_kv, k]."""
        config = self.config
        return step.backend.select_blocks(
            index_q,
            index_k,
            step.documents,
            block_size=config.block_size,
            topk=step.topk,
            local_blocks=config.local_blocks,
            init_blocks=config.init_blocks,
        )

    @torch.no_grad()
    def _captured(
        self, index_q: Tensor, index_k: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, step: Step
    ) -> Tensor:
        """Mean share of the dense attention that the chosen blocks hold, over the rows that leave a block out."""
        config, backend = self.config, step.backend
        choosing = step.documents.positions >= step.topk * config.block_size
        if not choosing.any():
            return lse.new_ones(())
        ids = self.select(index_q, index_k, step)
        _, sparse_lse = backend.sparse_attention(q, k, v, ids, step.documents, block_size=config.block_size)
        return backend.captured_mass(sparse_lse, lse, config.num_kv_heads)[choosing.to(lse.device)].mean()
