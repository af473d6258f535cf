"""Attention over documents with its gradient, tile by tile.

    O = softmax(Q K^T * scale) V                              over the visible tokens, or those of the chosen blocks
    P = exp(Q K^T * scale - LSE),  delta = rowsum(dO * O)     rebuilt in the backward pass
    dS = P * (dO V^T - delta),  dQ = scale * dS K,  dK = scale * dS^T Q,  dV = P^T dO

dK and dV are summed over the G query heads of a group; a block that nobody chose gets exactly zero.
Legend: n rows of a document, R rows and C keys of a tile, D head dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longsight.ops.training.documents import Documents
from longsight.ops.training.tiles import OnlineSoftmax, accumulator, tiles


class Attention(torch.autograd.Function):
    """(out, lse) and the gradients of q, k and v; ids None means all visible tokens."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, ids: Tensor | None, docs: Documents, block_size: int, scale: float
    ) -> tuple[Tensor, Tensor]:
        exact = accumulator(q.dtype)
        out = torch.zeros_like(q)
        lse = torch.full(q.shape[:2], -math.inf, dtype=exact, device=q.device)
        group, dim = q.shape[1] // k.shape[1], q.shape[2]
        for first, end in docs.bounds:
            rows = slice(first, end)
            for head in range(k.shape[1]):
                span = slice(head * group, (head + 1) * group)
                queries = q[rows, span].to(exact) * scale  # [n, G, D]
                keys, values = k[rows, head].to(exact), v[rows, head].to(exact)  # [n, D]
                softmax = OnlineSoftmax((end - first, group), exact, q.device)
                summed = torch.zeros_like(queries)
                chosen = None if ids is None else ids[rows, head]
                for part, cols, hidden in tiles(chosen, end - first, block_size, group, dim, q.device):
                    scores = queries[part] @ keys[cols].T  # [R, G, C]
                    weights, shrink = softmax.add(part, scores.masked_fill_(hidden[:, None], -math.inf))
                    summed[part] = summed[part] * shrink[..., None] + weights @ values[cols]
                # The largest score adds exp(0) to the sum, so it is below 1 only for a row that saw nothing.
                out[rows, span] = (summed / softmax.sum.clamp(min=1.0)[..., None]).to(q.dtype)
                lse[rows, span] = softmax.lse()
        ctx.save_for_backward(q, k, v, out, lse, ids)
        ctx.docs, ctx.block_size, ctx.scale = docs, block_size, scale
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, ids = ctx.saved_tensors
        exact, scale = accumulator(q.dtype), ctx.scale
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        group, dim = q.shape[1] // k.shape[1], q.shape[2]
        for first, end in ctx.docs.bounds:
            rows = slice(first, end)
            for head in range(k.shape[1]):
                span = slice(head * group, (head + 1) * group)
                queries, grads = q[rows, span].to(exact) * scale, dout[rows, span].to(exact)  # [n, G, D]
                keys, values = k[rows, head].to(exact), v[rows, head].to(exact)  # [n, D]
                delta = (grads * out[rows, span].to(exact)).sum(-1)  # [n, G]
                dqueries, dkeys, dvalues = (torch.zeros_like(x) for x in (queries, keys, values))
                chosen = None if ids is None else ids[rows, head]
                for part, cols, hidden in tiles(chosen, end - first, ctx.block_size, group, dim, q.device):
                    scores = (queries[part] @ keys[cols].T).masked_fill_(hidden[:, None], -math.inf)  # [R, G, C]
                    p = (scores - lse[rows, span][part][..., None]).exp()
                    ds = p * (grads[part] @ values[cols].T - delta[part][..., None])
                    dqueries[part] += ds @ keys[cols]
                    dkeys[cols] += ds.flatten(0, 1).T @ queries[part].flatten(0, 1)
                    dvalues[cols] += p.flatten(0, 1).T @ grads[part].flatten(0, 1)
                dq[rows, span] = (dqueries * scale).to(q.dtype)
                dk[rows, head], dv[rows, head] = dkeys.to(k.dtype), dvalues.to(v.dtype)
        return dq, dk, dv, None, None, None, None
