"""The divergence that trains the index branch, over every visible token but for a few rows only.

`dense_kl` goes through all pairs of rows and tokens. Where the loss has weight on few rows it is enough to go through
theirs: rows x tokens instead of half of tokens x tokens. Formulas and legend: reference_kl.py; N rows count. Any
device; sums in fp32, or fp64 for fp64 inputs, gradients in the dtype of what they are of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longsight.ops.errors import UnsupportedError
from longsight.ops.training import check
from longsight.ops.training.documents import Documents
from longsight.ops.training.tiles import accumulator

SCORES = 1 << 24  # the teacher's scores that exist at one time (64 MiB in fp32), or those of one row if it has more


def rows_kl(
    index_q: Tensor,
    index_k: Tensor,
    q: Tensor,
    k: Tensor,
    rows: Tensor,
    docs: Documents,
    *,
    weight: Tensor,
    scale: float | None = None,
) -> Tensor:
    """`dense_kl` of the rows `rows` alone: sum_n weight[n] * mean_r sum_j P log(P / P_idx), a scalar.

    rows int64 [N], ascending; index_q [N, H_kv, D_idx] and q [N, H_q, D] are those rows', index_k [T, D_idx] and
    k [T, H_kv, D] every row's; weight fp32 [N]. Gradients of index_q and index_k only.
    Raises UnsupportedError for shapes that do not fit or rows that are not of the documents.
    """
    count = rows.shape[0]
    check.shape("index_k", index_k, (docs.rows, None))
    check.shape("k", k, (docs.rows, None, None))
    check.shape("index_q", index_q, (count, k.shape[1], index_k.shape[1]))
    check.shape("q", q, (count, None, k.shape[2]))
    check.shape("weight", weight, (count,))
    check.same("index_q, index_k, q and k", index_q, index_k, q, k)
    check.heads(q, k)
    if count and (int(rows[0]) < 0 or int(rows[-1]) >= docs.rows or (rows.diff() <= 0).any()):
        raise UnsupportedError(f"rows must ascend strictly from 0 to {docs.rows - 1} at most")
    total: Tensor = _RowsDivergence.apply(  # type: ignore[no-untyped-call]
        index_q, index_k, q.detach(), k.detach(), rows, docs, check.scale(scale, q.shape[2]), weight.detach()
    )
    return total


class _RowsDivergence(torch.autograd.Function):
    """The scalar; its gradients are found on the way, since they need the same products."""

    @staticmethod
    def forward(
        ctx: Any,
        index_q: Tensor,
        index_k: Tensor,
        q: Tensor,
        k: Tensor,
        rows: Tensor,
        docs: Documents,
        scale: float,
        weight: Tensor,
    ) -> Tensor:
        exact, groups = accumulator(q.dtype), k.shape[1]
        index_scale, heads = index_q.shape[2] ** -0.5, q.unflatten(1, (groups, -1))  # [N, H_kv, G, D]
        dindex_q = torch.zeros(index_q.shape, dtype=exact, device=q.device)
        dindex_k = torch.zeros(index_k.shape, dtype=exact, device=q.device)
        total = torch.zeros((), dtype=exact, device=q.device)
        for first, end in docs.bounds:
            inside = ((rows >= first) & (rows < end)).nonzero()[:, 0]
            limit = max(1, SCORES // (heads.shape[2] * max(1, end - first)))
            index_keys = index_k[first:end].to(exact)
            for head in range(groups):
                keys = k[first:end, head].to(exact)
                for part in inside.split(limit):
                    if not part.numel():
                        continue
                    own = rows[part] - first
                    seen = int(own[-1]) + 1
                    hidden = torch.arange(seen, device=q.device) > own[:, None]  # [R, C]
                    scores = (heads[part, head].to(exact) * scale) @ keys[:seen].T
                    p = scores.masked_fill_(hidden[:, None], -torch.inf).softmax(-1).mean(1)
                    queries = index_q[part, head].to(exact)
                    student = (queries @ index_keys[:seen].T * index_scale).masked_fill_(hidden, -torch.inf)
                    log_p_index = student.log_softmax(-1)
                    value = (torch.xlogy(p, p) - p * log_p_index.masked_fill(hidden, 0.0)).sum(-1)
                    total += (weight[part] * value).sum() / groups
                    e = (log_p_index.exp_() - p) * (weight[part] * (index_scale / groups))[:, None]
                    dindex_q[part, head] = e @ index_keys[:seen]
                    dindex_k[first : first + seen] += e.T @ queries
        ctx.save_for_backward(dindex_q.to(index_q.dtype), dindex_k.to(index_k.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor | None, ...]:
        dindex_q, dindex_k = ctx.saved_tensors
        return dtotal.to(dindex_q.dtype) * dindex_q, dtotal.to(dindex_k.dtype) * dindex_k, *([None] * 6)
