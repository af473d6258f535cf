"""Every operator in plain PyTorch: the specification. Slow, exact, short enough to check against the paper.

Source: MiniMax Sparse Attention, arXiv:2606.13392; the selection contract is docs/selection.md.
Legend: T packed rows, H_q query heads, H_kv groups, G = H_q / H_kv, D head dim, D_idx index dim, B block size,
k blocks kept.
All arithmetic is fp32, whatever the storage dtype; outputs return in the dtype of the queries or activations.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from longsight.ops.batch import Batch
from longsight.ops.errors import UnsupportedError
from longsight.ops.layout import LayerPages, pack, unpack
from longsight.ops.weights import PackedExperts, PackedLinear

NAME = "reference"


def screens(dtype: torch.dtype, tokens: int) -> bool:
    """Whether scans of up to so many tokens gain by 8-bit copies of their index keys (PageLayout.screened)."""
    return False


def append_kv(pages: LayerPages, batch: Batch, k: Tensor, v: Tensor, index_k: Tensor | None) -> None:
    """Write the step's tokens into their pages, in place. k, v [T, H_kv, D]; index_k [T, D_idx] or None."""
    block = pages.layout.block_size
    for row, (sequence, position) in enumerate(zip(batch.row_sequence.tolist(), batch.positions.tolist(), strict=True)):
        if position < 0:
            continue
        page = batch.block_table[sequence, position // block].long()
        slot = position % block
        keys, values = pages.keys(page[None])[0], pages.values(page[None])[0]
        keys[:, slot], values[:, slot] = k[row], v[row]
        pages.k[page], pages.v[page] = pack(keys), pack(values.transpose(-1, -2))
        if pages.index_k is not None and index_k is not None:
            index = pages.index_keys(page[None])[0]
            index[slot] = index_k[row]
            pages.index_k[page] = pack(index)


def select_blocks(
    index_q: Tensor, pages: LayerPages, batch: Batch, *, topk: int, local_blocks: int = 1, init_blocks: int = 0
) -> Tensor:
    """Choose at most `topk` blocks per (row, group). index_q [T, H_kv, D_idx] -> int32 [T, H_kv, topk].

    Ids ascend, then -1. The `local_blocks` most recent blocks and the first `init_blocks` count within topk; the rest
    are the visible blocks with the highest maximal score, the lower id winning ties.
    """
    block = pages.layout.block_size
    out = torch.full((*index_q.shape[:2], topk), -1, dtype=torch.int32)
    for row, (sequence, position) in enumerate(zip(batch.row_sequence.tolist(), batch.positions.tolist(), strict=True)):
        if position < 0:
            continue
        own = position // block
        ids = batch.pages_of(sequence, block)[: own + 1]
        keys = pages.index_keys(ids).flatten(0, 1)[: position + 1].float()  # [n, D_idx]
        scores = index_q[row].float() @ keys.T  # [H_kv, n]
        if scores.isnan().any():
            raise UnsupportedError(f"NaN index score in row {row}: the selection is undefined")
        padded = F.pad(scores, (0, (own + 1) * block - position - 1), value=-math.inf)
        block_max = padded.unflatten(-1, (own + 1, block)).amax(-1)  # [H_kv, own + 1]
        block_max[:, max(own + 1 - local_blocks, 0) :] = math.inf
        block_max[:, : min(init_blocks, own + 1)] = math.inf
        # A stable descending sort leaves equal scores in ascending order of id.
        chosen = block_max.sort(dim=-1, descending=True, stable=True).indices[:, :topk]
        out[row, :, : chosen.shape[1]] = chosen.sort(-1).values.to(torch.int32)
    return out


def sparse_attention(
    q: Tensor, pages: LayerPages, batch: Batch, ids: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each row over the tokens of its chosen blocks.

    q [T, H_q, D], ids int32 [T, H_kv, k] -> out [T, H_q, D] in q's dtype, log-sum-exp fp32 [T, H_q] (natural log).
    """
    out, lse = torch.zeros_like(q), torch.full(q.shape[:2], -math.inf)
    block, (rows, heads, _) = pages.layout.block_size, q.shape
    group = heads // pages.layout.kv_heads
    for row in range(rows):
        sequence, position = int(batch.row_sequence[row]), int(batch.positions[row])
        for kv_head in range(pages.layout.kv_heads):
            blocks = ids[row, kv_head]
            blocks = blocks[blocks >= 0].long()
            if position < 0 or blocks.numel() == 0:
                continue
            tokens = (blocks[:, None] * block + torch.arange(block)).flatten()  # absolute positions
            chosen = batch.block_table[sequence, blocks].long()
            visible = tokens <= position
            keys = pages.keys(chosen)[:, kv_head].flatten(0, 1)[visible].float()  # [n, D]
            values = pages.values(chosen)[:, kv_head].flatten(0, 1)[visible].float()
            span = slice(kv_head * group, (kv_head + 1) * group)
            out[row, span], lse[row, span] = _attend(q[row, span], keys, values, scale)
    return out, lse


def dense_attention(q: Tensor, pages: LayerPages, batch: Batch, *, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Causal GQA attention over everything a row can see; shapes as in `sparse_attention`."""
    out, lse = torch.zeros_like(q), torch.full(q.shape[:2], -math.inf)
    group = q.shape[1] // pages.layout.kv_heads
    starts = batch.cu_seqlens.tolist()
    for sequence in range(batch.kv_lens.shape[0]):
        chosen = batch.pages_of(sequence, pages.layout.block_size)
        keys = pages.keys(chosen).transpose(0, 1).flatten(1, 2).float()  # [H_kv, n, D]
        values = pages.values(chosen).transpose(0, 1).flatten(1, 2).float()
        for row in range(starts[sequence], starts[sequence + 1]):
            n = int(batch.positions[row]) + 1
            if n <= 0:
                continue
            for kv_head in range(pages.layout.kv_heads):
                span = slice(kv_head * group, (kv_head + 1) * group)
                out[row, span], lse[row, span] = _attend(q[row, span], keys[kv_head, :n], values[kv_head, :n], scale)
    return out, lse


def _attend(q: Tensor, keys: Tensor, values: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    scores = (q.float() @ keys.T) * (q.shape[-1] ** -0.5 if scale is None else scale)  # [G, n]
    return (scores.softmax(-1) @ values).to(q.dtype), scores.logsumexp(-1)


def linear(x: Tensor, weight: PackedLinear) -> Tensor:
    """x [T, K] times a packed weight [N, K] -> [T, N] in x's dtype."""
    dense = unpack(weight.data, weight.padded_out, weight.in_features)[: weight.out_features]
    return (x.float() @ dense.float().T).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Gemma RMSNorm over the last dimension: x * rsqrt(mean(x^2) + eps) * (1 + weight), fp32 inside, x's dtype out."""
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * (1.0 + weight.float())).to(x.dtype)


def norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Per-head Gemma RMSNorm, then rotation of the first R channels (half-split pairs i, i + R/2).

    x [T, H, D] (rows may be strided), weight [D], cos and sin fp32 [T, R/2] -> contiguous [T, H, D] in x's dtype.
    """
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * (1.0 + weight.float())
    half = cos.shape[-1]
    a, b, rest = y[..., :half], y[..., half : 2 * half], y[..., 2 * half :]
    c, s = cos[:, None], sin[:, None]
    return torch.cat((a * c - b * s, b * c + a * s, rest), -1).to(x.dtype)


def swiglu(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """M3's clamped gate: [gate | up] [T, 2I] -> (clamp(up) + 1) * g * sigmoid(alpha * g), g = min(gate, limit)."""
    gate, up = gate_up.float().chunk(2, -1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return ((up + 1) * gate * torch.sigmoid(alpha * gate)).to(gate_up.dtype)


def add(y: Tensor, x: Tensor) -> Tensor:
    """y += x in fp32, rounded to y's dtype; returns y."""
    return y.copy_(y.float() + x.float())


def route(x: Tensor, weight: PackedLinear, bias: Tensor, topk: int, scale: float) -> tuple[Tensor, Tensor]:
    """M3's router, always in fp32: x [T, K], weight [E, K], bias fp32 [E] -> ids int64, weights fp32, both [T, k].

    The topk experts by sigmoid + bias, equal ones to the lower id, ids ascending; their weights are the sigmoids alone
    over their sum, times scale.
    """
    # torch's vector and scalar loops round a sigmoid differently, and which runs depends on the number of rows; the
    # detour over fp64 gives every row the same fp32 value.
    scores = linear(x.float(), weight).double().sigmoid_().float()
    ids = (scores + bias).sort(dim=-1, descending=True, stable=True).indices[:, :topk].sort(-1).values
    weights = scores.gather(1, ids)
    return ids, weights.mul_(scale / weights.sum(-1, keepdim=True))


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The place of each row's largest logit, int32 [T], and the logit, fp32 [T]: logits [T, V].

    Of equal ones the first; a NaN counts as larger than all.
    """
    ids = logits.float().argmax(-1, keepdim=True)
    return ids[:, 0].int(), logits.float().gather(1, ids)[:, 0]


def moe(
    x: Tensor, expert_ids: Tensor, expert_weights: Tensor, experts: PackedExperts, alpha: float, limit: float
) -> Tensor:
    """Weighted sum of the chosen experts: x [T, K], ids int64 [T, k], weights fp32 [T, k] -> fp32 [T, K]."""
    out = torch.zeros(x.shape, dtype=torch.float32)
    for expert in expert_ids.unique().tolist():
        rows, slot = (expert_ids == expert).nonzero(as_tuple=True)
        y = linear(swiglu(linear(x[rows], experts.gate_up[expert]), alpha, limit), experts.down[expert])
        out.index_add_(0, rows, y.float() * expert_weights[rows, slot, None])
    return out
