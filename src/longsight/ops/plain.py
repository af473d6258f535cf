"""The attention operators on one sequence's plain tensors: pages are filled, used and dropped in one call.

For experiments and tests. An engine keeps its pages, and calls a backend of `ops.choose` on them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longsight.ops.backends import Backend, choose
from longsight.ops.batch import Batch
from longsight.ops.errors import UnsupportedError
from longsight.ops.layout import LayerPages, PageLayout


def select_blocks(
    index_q: Tensor,
    index_k: Tensor,
    *,
    block_size: int,
    topk: int,
    local_blocks: int = 1,
    init_blocks: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Which blocks each row attends to: int32 [T, H_kv, topk], ids ascending, then -1 (docs/selection.md).

    index_q [T, H_kv, D_idx], index_k [N, D_idx], float32 or bfloat16 alike. The T rows are the last T of N tokens.
    backend: see `choose`. Raises UnsupportedError for shapes and dtypes that it cannot run.
    """
    _check("index_q", index_q, 3)
    _check("index_k", index_k, 2)
    # An operator on pages wants keys and values too; the least that a page can hold.
    kv = index_k.new_zeros(index_k.shape[0], index_q.shape[1], 16)
    ops, _ = choose(backend)
    pages, batch = _paged(ops, index_q, kv, kv, index_k, block_size)
    return ops.select_blocks(index_q, pages, batch, topk=topk, local_blocks=local_blocks, init_blocks=init_blocks)


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ids: Tensor,
    *,
    block_size: int,
    scale: float | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of each row over its chosen blocks: out [T, H_q, D], log-sum-exp float32 [T, H_q].

    q [T, H_q, D]; k, v [N, H_kv, D]; ids int32 [T, H_kv, topk] of `select_blocks`. scale: 1 / sqrt(D) unless given.
    Otherwise as `select_blocks`.
    """
    ops, _ = choose(backend)
    pages, batch = _attended(ops, q, k, v, block_size)
    return ops.sparse_attention(q, pages, batch, ids, scale=scale)


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, *, block_size: int = 64, scale: float | None = None, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Causal attention of each row over all that it can see; as `sparse_attention`."""
    ops, _ = choose(backend)
    pages, batch = _attended(ops, q, k, v, block_size)
    return ops.dense_attention(q, pages, batch, scale=scale)


def _attended(ops: Backend, q: Tensor, k: Tensor, v: Tensor, block_size: int) -> tuple[LayerPages, Batch]:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _check(name, tensor, 3)
    if k.shape != v.shape or q.shape[2] != k.shape[2] or q.shape[1] % k.shape[1]:
        raise UnsupportedError(
            f"q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} do not go together; they are [T, H_q, D] and "
            "twice [N, H_kv, D], with H_q a multiple of H_kv"
        )
    return _paged(ops, q, k, v, None, block_size)


def _paged(
    ops: Backend, q: Tensor, k: Tensor, v: Tensor, index_k: Tensor | None, block_size: int
) -> tuple[LayerPages, Batch]:
    """The sequence's pages, and the batch whose rows are the queries."""
    tokens, rows = k.shape[0], q.shape[0]
    if rows > tokens:
        raise UnsupportedError(f"there are {rows} rows of queries and {tokens} keys; queries are of the last tokens")
    index_dim = 0 if index_k is None else index_k.shape[-1]
    layout = PageLayout(block_size, k.shape[1], k.shape[2], index_dim, k.dtype)
    count = -(-tokens // block_size)
    pages = LayerPages.allocate(layout, count)
    ops.append_kv(pages, Batch.build([(tokens, tokens, range(count))]), k, v, index_k)
    return pages, Batch.build([(rows, tokens, range(count))])


def _check(name: str, tensor: Tensor, dims: int) -> None:
    if tensor.ndim != dims:
        raise UnsupportedError(f"{name} is {list(tensor.shape)}; it must have {dims} dimensions")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise UnsupportedError(f"{name} requires a gradient; longsight.ops.training has the operators with gradients")
