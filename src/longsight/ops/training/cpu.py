"""The training operators on compiled CPU kernels. The meaning is in reference.py, the arithmetic in csrc/.

Forward passes run the kernels of inference over pages that hold each document's blocks in order; gradients have kernels
of their own (csrc/attend_grad.h, csrc/index_kl.h). Beyond inputs and outputs a call takes the packed operands (three
times the keys), fp32 gradients of keys and values, and per thread a chunk of 16,384 query rows.

Legend: T packed rows, H_q query heads, H_kv groups, G = H_q / H_kv, D head dim, D_idx index dim, B block size, k blocks
kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from longsight.ops import cpu, kernels
from longsight.ops.batch import Batch
from longsight.ops.errors import UnsupportedError
from longsight.ops.layout import DTYPES, LayerPages, PageLayout
from longsight.ops.training import check
from longsight.ops.training.documents import Documents
from longsight.ops.training.reference import captured_mass

__all__ = ["NAME", "captured_mass", "dense_attention", "dense_kl", "select_blocks", "sparse_attention", "sparse_kl"]

NAME = "cpu"
DENSE_BLOCK = 128  # keys of a block where the caller names none
CHANNELS = 16  # head and index dims are padded with zeros to a multiple of this


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
    check.selection(index_q, index_k, docs, block_size, topk, local_blocks, init_blocks, DTYPES)
    _supported(index_q, block_size)
    index_q, index_k = _wide(index_q), _wide(index_k)
    # The paged kernels hold keys and values beside index keys: here the smallest there are, of no consequence.
    layout = PageLayout(block_size, 1, CHANNELS, index_q.shape[2], index_q.dtype)
    unused = index_k.new_zeros(docs.rows, 1, CHANNELS)
    pages, batch = _pages(layout, docs, unused, unused, index_k)
    return cpu.select_blocks(index_q, pages, batch, topk=topk, local_blocks=local_blocks, init_blocks=init_blocks)


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, ids: Tensor, docs: Documents, *, block_size: int, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    check.attention(q, k, v, docs, DTYPES)
    _supported(q, block_size, q.shape[1] // k.shape[1])
    check.chosen(ids, docs, k.shape[1], block_size, q)
    out, lse = _Attention.apply(q, k, v, ids, docs, block_size, scale)  # type: ignore[no-untyped-call]
    return out, lse


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, docs: Documents, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    check.attention(q, k, v, docs, DTYPES)
    _supported(q, DENSE_BLOCK, q.shape[1] // k.shape[1])
    out, lse = _Attention.apply(q, k, v, None, docs, DENSE_BLOCK, scale)  # type: ignore[no-untyped-call]
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
    check.divergence(index_q, index_k, q, k, lse, weight, docs, DTYPES)
    _supported(q, block_size, q.shape[1] // k.shape[1])
    _supported(index_q, block_size)
    check.chosen(ids, docs, k.shape[1], block_size, q)
    return _kl(index_q, index_k, q, k, lse, ids, docs, block_size, scale, weight)


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
    check.divergence(index_q, index_k, q, k, lse, weight, docs, DTYPES)
    _supported(q, DENSE_BLOCK, q.shape[1] // k.shape[1])
    _supported(index_q, DENSE_BLOCK)
    return _kl(index_q, index_k, q, k, lse, None, docs, DENSE_BLOCK, scale, weight)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ids: Tensor | None,
        docs: Documents,
        block_size: int,
        scale: float | None,
    ) -> tuple[Tensor, Tensor]:
        dim = q.shape[2]
        ctx.docs, ctx.block_size, ctx.scale, ctx.dim = docs, block_size, check.scale(scale, dim), dim
        ids = None if ids is None else ids.contiguous()
        q, k, v = _wide(q), _wide(k), _wide(v)
        pages, batch = _pages(PageLayout(block_size, k.shape[1], q.shape[2], 0, q.dtype), docs, k, v, None)
        if ids is None:
            out, lse = cpu.dense_attention(q, pages, batch, scale=ctx.scale)
        else:
            out, lse = cpu.sparse_attention(q, pages, batch, ids, scale=ctx.scale)
        ctx.save_for_backward(q, k, v, ids, out, lse)
        ctx.mark_non_differentiable(lse)
        return out[..., :dim], lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, ids, out, lse = ctx.saved_tensors
        dout = _wide(grad)
        dq = torch.empty_like(q)
        dk, dv = torch.zeros(k.shape), torch.zeros(v.shape)
        kernels.call(
            "ls_attention_grad",
            kernels.AttentionGradArgs(
                q.data_ptr(),
                k.data_ptr(),
                v.data_ptr(),
                out.data_ptr(),
                dout.data_ptr(),
                lse.data_ptr(),
                0 if ids is None else ids.data_ptr(),
                dq.data_ptr(),
                dk.data_ptr(),
                dv.data_ptr(),
                _documents(ctx.docs),
                q.shape[1],
                k.shape[1],
                q.shape[2],
                ctx.block_size,
                0 if ids is None else ids.shape[2],
                ctx.scale,
                q.dtype == torch.bfloat16,
                torch.get_num_threads(),
            ),
        )
        grads = (dq, dk.to(k.dtype), dv.to(v.dtype))
        return *(each[..., : ctx.dim] for each in grads), None, None, None, None


class _Divergence(torch.autograd.Function):
    """The divergence, and with it its gradients: nothing but their scale depends on what comes after."""

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
        wants_gradients: bool,
    ) -> Tensor:
        ctx.dim, ctx.dtype = index_q.shape[2], index_q.dtype
        index_scale = check.scale(None, ctx.dim)
        index_q, index_k, q, k = _wide(index_q), _wide(index_k), _wide(q), _wide(k)
        loss = torch.empty(1)
        dq = torch.empty(index_q.shape if wants_gradients else 0)
        dk = torch.zeros((k.shape[1], *index_k.shape) if wants_gradients else 0)
        kernels.call(
            "ls_index_kl",
            kernels.IndexKlArgs(
                index_q.data_ptr(),
                index_k.data_ptr(),
                q.data_ptr(),
                k.data_ptr(),
                lse.data_ptr(),
                0 if ids is None else ids.data_ptr(),
                weight.data_ptr(),
                loss.data_ptr(),
                dq.data_ptr() if wants_gradients else 0,
                dk.data_ptr() if wants_gradients else 0,
                _documents(docs),
                q.shape[1],
                k.shape[1],
                q.shape[2],
                index_q.shape[2],
                block_size,
                0 if ids is None else ids.shape[2],
                scale,
                index_scale,
                q.dtype == torch.bfloat16,
                torch.get_num_threads(),
            ),
        )
        if wants_gradients:
            for group in dk[1:]:  # in order: the sum must not depend on how torch splits a reduction
                dk[0] += group
            ctx.save_for_backward(dq, dk[0].clone())
        return loss[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dq, dk = ((each[..., : ctx.dim] * grad).to(ctx.dtype) for each in ctx.saved_tensors)
        return dq, dk, *(None,) * 9


def _kl(
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
    if weight is None:
        weight = torch.full((docs.rows,), 1 / max(1, docs.rows))
    wants_gradients = torch.is_grad_enabled() and (index_q.requires_grad or index_k.requires_grad)
    loss: Tensor = _Divergence.apply(  # type: ignore[no-untyped-call]
        index_q,
        index_k,
        q.detach(),
        k.detach(),
        lse.detach().contiguous(),
        None if ids is None else ids.contiguous(),
        docs,
        block_size,
        check.scale(scale, q.shape[2]),
        weight.detach().contiguous(),
        wants_gradients,
    )
    return loss


def _pages(
    layout: PageLayout, docs: Documents, k: Tensor, v: Tensor, index_k: Tensor | None
) -> tuple[LayerPages, Batch]:
    """Every document's keys and values in pages of their own, in order."""
    lengths = docs.cu_seqlens.diff()
    counts = -(-lengths // layout.block_size)
    first = counts.cumsum(0) - counts
    total, widest = int(counts.sum()), int(counts.max()) if len(counts) else 0
    table = first[:, None] + torch.arange(max(1, widest))
    batch = Batch.trusted(
        docs.cu_seqlens.contiguous(), lengths, table.to(torch.int32).contiguous(), layout.block_size, total
    )
    pages = LayerPages.allocate(layout, max(1, total))
    cpu.append_kv(pages, batch, k, v, index_k)
    return pages, batch


def _documents(docs: Documents) -> kernels.DocumentsArgs:
    return kernels.DocumentsArgs(docs.cu_seqlens.data_ptr(), docs.cu_seqlens.shape[0] - 1)


def _wide(x: Tensor) -> Tensor:
    """Contiguous, the last dimension padded with zeros to a multiple of CHANNELS: scores and outputs stay the same."""
    missing = -x.shape[-1] % CHANNELS
    return F.pad(x, (0, missing)) if missing else x.contiguous()  # pad would copy even when there is nothing to add


def _supported(x: Tensor, block_size: int, group: int = 1) -> None:
    """Raise UnsupportedError for what these kernels, unlike the reference, cannot run."""
    if x.device.type != "cpu":
        raise UnsupportedError(f"the CPU training kernels need tensors in CPU memory, got {x.device}")
    if block_size % 16:
        raise UnsupportedError(f"block_size {block_size} is not a multiple of 16, which the CPU training kernels need")
    if not 1 <= x.shape[2] <= 256:
        raise UnsupportedError(f"{x.shape[2]} channels per head; the CPU training kernels take 1 to 256")
    if group > cpu.MAX_GROUP:
        raise UnsupportedError(f"{group} query heads per group; the CPU training kernels take 1 to {cpu.MAX_GROUP}")
