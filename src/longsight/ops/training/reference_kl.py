"""The divergence that trains the index branch, with its gradient, tile by tile.

    teacher  P     = 1/G * sum over the group's heads h of softmax(q_h K^T * scale): a mean of probabilities
    student  P_idx = softmax(index_q index_k^T / sqrt(D_idx))
    value    sum_t weight[t] * 1/H_kv * sum_r sum_j P log(P / P_idx)
    E = P_idx - P,  c[t] = weight[t] / (H_kv * sqrt(D_idx))
    d index_q[t, r] = c[t] * sum_j E index_k[j],   d index_k[j] = sum_t,r c[t] * E index_q[t, r]

j runs over the visible tokens, or those of the chosen blocks. P and P_idx are rebuilt from log-sum-exps; nothing flows
into the teacher. Legend: n rows of a document, R rows and C keys of a tile.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longsight.ops.training.documents import Documents
from longsight.ops.training.tiles import OnlineSoftmax, accumulator, tiles


class Divergence(torch.autograd.Function):
    """The scalar and its gradients for index_q and index_k; ids None means all visible tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        index_q: Tensor,
        index_k: Tensor,
        q: Tensor,
        k: Tensor,
        lse: Tensor,
        ids: Tensor | None,
        docs: Documents,
        block_size: int,
        scale: float,
        weight: Tensor,
    ) -> Tensor:
        exact, groups = accumulator(q.dtype), k.shape[1]
        index_scale = index_q.shape[2] ** -0.5
        group, width = q.shape[1] // groups, max(q.shape[2], index_q.shape[2])
        index_lse = torch.full(index_q.shape[:2], -math.inf, dtype=exact, device=q.device)
        total = torch.zeros((), dtype=exact, device=q.device)
        for first, end in docs.bounds:
            rows = slice(first, end)
            index_keys = index_k[rows].to(exact)  # [n, D_idx]
            for head in range(groups):
                span = slice(head * group, (head + 1) * group)
                queries, keys = q[rows, span].to(exact) * scale, k[rows, head].to(exact)  # [n, G, D], [n, D]
                index_queries = index_q[rows, head].to(exact) * index_scale  # [n, D_idx]
                softmax = OnlineSoftmax((end - first,), exact, q.device)
                # sum_j P log(P / P_idx) = sum_j P (log P - s) + LSE_idx * sum_j P, s the student's scores
                gap, mass = torch.zeros_like(softmax.sum), torch.zeros_like(softmax.sum)
                chosen = None if ids is None else ids[rows, head]
                for part, cols, hidden in tiles(chosen, end - first, block_size, group, width, q.device):
                    p = _teacher(queries[part], keys[cols], lse[rows, span][part], hidden)  # [R, C]
                    scores = index_queries[part] @ index_keys[cols].T
                    gap[part] += (torch.xlogy(p, p) - p * scores).sum(-1)
                    mass[part] += p.sum(-1)
                    softmax.add(part, scores.masked_fill_(hidden, -math.inf))
                index_lse[rows, head] = softmax.lse()
                value = torch.where(softmax.sum == 0, 0.0, gap + mass * softmax.lse())  # 0: the row chose nothing
                total += (weight[rows] * value).sum() / groups
        ctx.save_for_backward(index_q, index_k, q, k, lse, ids, weight, index_lse)
        ctx.docs, ctx.block_size, ctx.scale = docs, block_size, scale
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor | None, ...]:
        index_q, index_k, q, k, lse, ids, weight, index_lse = ctx.saved_tensors
        exact, groups = accumulator(q.dtype), k.shape[1]
        index_scale = index_q.shape[2] ** -0.5
        group, width = q.shape[1] // groups, max(q.shape[2], index_q.shape[2])
        dindex_q, dindex_k = torch.zeros_like(index_q), torch.zeros_like(index_k)
        factor = dtotal * weight * (index_scale / groups)  # [T]
        for first, end in ctx.docs.bounds:
            rows = slice(first, end)
            index_keys = index_k[rows].to(exact)
            dkeys = torch.zeros_like(index_keys)
            for head in range(groups):
                span = slice(head * group, (head + 1) * group)
                queries, keys = q[rows, span].to(exact) * ctx.scale, k[rows, head].to(exact)
                index_queries = index_q[rows, head].to(exact)
                dqueries = torch.zeros_like(index_queries)
                chosen = None if ids is None else ids[rows, head]
                for part, cols, hidden in tiles(chosen, end - first, ctx.block_size, group, width, q.device):
                    p = _teacher(queries[part], keys[cols], lse[rows, span][part], hidden)
                    scores = (index_queries[part] @ index_keys[cols].T * index_scale).masked_fill_(hidden, -math.inf)
                    p_index = (scores - index_lse[rows, head][part][:, None]).exp()
                    e = (p_index - p) * factor[rows][part][:, None]  # [R, C]
                    dqueries[part] += e @ index_keys[cols]
                    dkeys[cols] += e.T @ index_queries[part]
                dindex_q[rows, head] = dqueries.to(index_q.dtype)
            dindex_k[rows] = dkeys.to(index_k.dtype)
        return dindex_q, dindex_k, *([None] * 8)


def _teacher(queries: Tensor, keys: Tensor, lse: Tensor, hidden: Tensor) -> Tensor:
    """The heads' mean probability: scaled queries [R, G, D], keys [C, D], lse [R, G] -> [R, C]."""
    scores = (queries @ keys.T).masked_fill_(hidden[:, None], -math.inf)
    return (scores - lse[..., None]).exp().mean(1)
