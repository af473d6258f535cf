"""The training operators against autograd of the full-matrix formulas, over packed documents."""

from __future__ import annotations

import torch
from torch import Tensor

from longsight.ops.training import Documents, choose

REFERENCE, _ = choose("reference")


def naive_attention(q: Tensor, k: Tensor, v: Tensor, support: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Out, log-sum-exp and probabilities [T, H_q, T] from the whole matrix; support bool [T, H_kv, T]."""
    group = q.shape[1] // k.shape[1]
    k, v, support = (x.repeat_interleave(group, 1) for x in (k, v, support))
    scores = torch.einsum("thd,jhd->thj", q, k) * scale
    scores = scores.masked_fill(~support, -torch.inf)
    p = scores.softmax(-1)
    return torch.einsum("thj,jhd->thd", p, v), scores.logsumexp(-1), p


def support_of(docs: Documents, groups: int, ids: Tensor | None, block_size: int) -> Tensor:
    """bool [T, H_kv, T]: what each row attends to."""
    out = torch.zeros(docs.rows, groups, docs.rows, dtype=torch.bool)
    for first, end in docs.bounds:
        for t in range(first, end):
            for r in range(groups):
                for j in range(first, t + 1):
                    out[t, r, j] = ids is None or (j - first) // block_size in ids[t, r].tolist()
    return out


def test_first() -> None:
    torch.manual_seed(0)
    docs = Documents.of_lengths([0, 1, 13, 0, 9])
    T, B = docs.rows, 4
    f64 = torch.float64
    q, k, v = (torch.randn(T, h, 8, dtype=f64, requires_grad=True) for h in (4, 2, 2))
    iq, ik = torch.randn(T, 2, 4, dtype=f64, requires_grad=True), torch.randn(T, 4, dtype=f64, requires_grad=True)
    chosen = REFERENCE.select_blocks(iq, ik, docs, block_size=B, topk=2)
    for ids in (chosen, None):
        support = support_of(docs, 2, ids, B)
        want, lse, p = naive_attention(q, k, v, support, 8**-0.5)
        if ids is None:
            out, got = REFERENCE.dense_attention(q, k, v, docs)
            kl = REFERENCE.dense_kl(iq, ik, q, k, got, docs)
        else:
            out, got = REFERENCE.sparse_attention(q, k, v, ids, docs, block_size=B)
            kl = REFERENCE.sparse_kl(iq, ik, q, k, got, ids, docs, block_size=B)
        torch.testing.assert_close(out, want)
        torch.testing.assert_close(got, lse.detach())
        w = torch.randn_like(out)
        for a, b in zip(
            torch.autograd.grad((out * w).sum(), (q, k, v)),
            torch.autograd.grad((want * w).sum(), (q, k, v), retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b)
        teacher = p.detach().unflatten(1, (2, 2)).mean(2)
        logp = (torch.einsum("trd,jd->trj", iq, ik) * 0.5).masked_fill(~support, -torch.inf).log_softmax(-1)
        each = torch.where(support, torch.xlogy(teacher, teacher) - teacher * logp.masked_fill(~support, 0), 0.0)
        naive = each.sum(-1).mean(-1).mean()
        torch.testing.assert_close(kl, naive)
        for a, b in zip(torch.autograd.grad(kl, (iq, ik)), torch.autograd.grad(naive, (iq, ik)), strict=True):
            torch.testing.assert_close(a, b)
