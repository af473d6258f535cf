"""The training operators in plain PyTorch: the specification. Any device; fp32, bf16 and fp64.

Source: MiniMax Sparse Attention, arXiv:2606.13392; the contract is docs/training-operators.md.
Legend: T packed rows, H_q query heads, H_kv groups, G = H_q / H_kv, D head dim, D_idx index dim, B block size,
k blocks kept.
Sums are fp32, or fp64 for fp64 inputs, and so are log-sum-exps and divergences; outputs and gradients have the dtype of
their inputs. No tensor of scores or probabilities is larger than a tile (tiles.py). Arguments that no backend can run
raise UnsupportedError.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from longsight.ops.errors import UnsupportedError
from longsight.ops.training import check
from longsight.ops.training.documents import Documents
from longsight.ops.training.reference_attention import Attention
from longsight.ops.training.reference_kl import Divergence
from longsight.ops.training.tiles import DENSE_KEYS, accumulator, row_limit

NAME = "reference"
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


@torch.no_grad()
def select_blocks(
    index_q: Tensor,
    index_k: Tensor,
    docs: Documents,
    *,
    block_size: int,
    topk: int,
    local_blocks: int = 1,
    init_blocks: int = 0,
) -> Tensor:
    """At most `topk` blocks per row and group: index_q [T, H_kv, D_idx], index_k [T, D_idx] -> int32 [T, H_kv, topk].

    The contract of docs/selection.md, blocks counted from each document's first row. Carries no gradient.
    """
    check.selection(index_q, index_k, docs, block_size, topk, local_blocks, init_blocks, DTYPES)
    exact, device = accumulator(index_q.dtype), index_q.device
    out = torch.full((*index_q.shape[:2], topk), -1, dtype=torch.int32, device=device)
    step = max(1, DENSE_KEYS // block_size) * block_size  # keys scored at a time: whole blocks
    for first, end in docs.bounds:
        keys = index_k[first:end].to(exact)
        ids = torch.arange(-(-(end - first) // block_size), device=device)
        limit = row_limit(index_q.shape[1], max(step, ids.shape[0], keys.shape[1]))
        for top in range(first, end, limit):
            rows = torch.arange(top - first, min(top + limit, end) - first, device=device)
            queries = index_q[first + rows].to(exact)  # [R, H_kv, D_idx]
            own = (rows // block_size)[:, None, None]
            best = torch.full((*queries.shape[:2], ids.shape[0]), -math.inf, dtype=exact, device=device)
            for start in range(0, min(top + limit, end) - first, step):
                scores = queries @ keys[start : start + step].T  # [R, H_kv, C]
                hidden = torch.arange(start, start + scores.shape[2], device=device) > rows[:, None]
                scores.masked_fill_(hidden[:, None], -math.inf)
                if scores.isnan().any():
                    raise UnsupportedError("NaN index score: the selection is undefined")
                padded = F.pad(scores, (0, -scores.shape[2] % block_size), value=-math.inf)
                maxima = padded.unflatten(-1, (-1, block_size)).amax(-1)
                best[..., start // block_size :][..., : maxima.shape[2]] = maxima
            forced = ((ids > own - local_blocks) | (ids < init_blocks)) & (ids <= own)
            # A stable descending sort leaves equal scores in ascending order of id, so invisible blocks come last.
            order = best.masked_fill_(forced, math.inf).sort(dim=-1, descending=True, stable=True).indices[..., :topk]
            chosen = torch.where(order > own, ids.shape[0], order).sort(-1).values
            out[first + rows, :, : chosen.shape[2]] = torch.where(chosen == ids.shape[0], -1, chosen).to(torch.int32)
    return out


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, ids: Tensor, docs: Documents, *, block_size: int, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each row over the visible tokens of its chosen blocks.

    q [T, H_q, D], k and v [T, H_kv, D], ids int32 [T, H_kv, k] -> out [T, H_q, D], log-sum-exp [T, H_q] (natural log).
    Gradients of q, k and v; the choice is a constant and the log-sum-exp carries none. A row that chose nothing has
    output 0 and log-sum-exp -inf. scale defaults to 1/sqrt(D).
    """
    check.attention(q, k, v, docs, DTYPES)
    check.chosen(ids, docs, k.shape[1], block_size, q)
    out, lse = Attention.apply(q, k, v, ids, docs, block_size, check.scale(scale, q.shape[2]))  # type: ignore[no-untyped-call]
    return out, lse


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, docs: Documents, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Causal attention of each row over its whole document so far; shapes and gradients as in `sparse_attention`."""
    check.attention(q, k, v, docs, DTYPES)
    out, lse = Attention.apply(q, k, v, None, docs, 0, check.scale(scale, q.shape[2]))  # type: ignore[no-untyped-call]
    return out, lse


def sparse_kl(
    index_q: Tensor,
    index_k: Tensor,
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    ids: Tensor,
    docs: Documents,
    *,
    block_size: int,
    scale: float | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """How far the index branch is from the main branch's attention over the chosen tokens: a scalar.

    sum_t weight[t] * mean_r sum_j P log(P / P_idx); formulas in reference_kl.py. index_q [T, H_kv, D_idx], index_k
    [T, D_idx]; q, k, lse and ids as given to and returned by `sparse_attention`; weight fp32 [T], 1/T by default.
    Gradients of index_q and index_k only.
    """
    check.divergence(index_q, index_k, q, k, lse, weight, docs, DTYPES)
    check.chosen(ids, docs, k.shape[1], block_size, q)
    return _divergence(index_q, index_k, q, k, lse, ids, docs, block_size, scale, weight)


def dense_kl(
    index_q: Tensor,
    index_k: Tensor,
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    docs: Documents,
    *,
    scale: float | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """`sparse_kl` over all visible tokens, for warm-up: lse is that of `dense_attention`."""
    check.divergence(index_q, index_k, q, k, lse, weight, docs, DTYPES)
    return _divergence(index_q, index_k, q, k, lse, None, docs, 0, scale, weight)


def captured_mass(lse_sparse: Tensor, lse_dense: Tensor, groups: int) -> Tensor:
    """The part of dense attention that falls on the chosen blocks: [T, H_q] twice -> [T, H_kv], mean over G heads."""
    check.shape("lse_dense", lse_dense, lse_sparse.shape)
    check.shape("lse_sparse", lse_sparse, (None, None))
    if groups < 1 or lse_sparse.shape[1] % groups:
        raise UnsupportedError(f"{lse_sparse.shape[1]} query heads do not fall into {groups} groups")
    mass: Tensor = (lse_sparse - lse_dense).exp().unflatten(1, (groups, -1)).mean(-1)
    return mass


def _divergence(
    index_q: Tensor,
    index_k: Tensor,
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    ids: Tensor | None,
    docs: Documents,
    block_size: int,
    scale: float | None,
    weight: Tensor | None,
) -> Tensor:
    exact = accumulator(q.dtype)
    if weight is None:
        weight = torch.full((docs.rows,), 1 / max(1, docs.rows), dtype=exact, device=q.device)
    teacher = (q.detach(), k.detach(), lse.detach().to(exact))
    total: Tensor = Divergence.apply(  # type: ignore[no-untyped-call]
        index_q, index_k, *teacher, ids, docs, block_size, check.scale(scale, q.shape[2]), weight.detach().to(exact)
    )
    return total
