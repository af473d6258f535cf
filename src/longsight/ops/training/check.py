"""What the training operators accept; every backend refuses the same arguments with the same words.

Legend: T packed rows, H_q query heads, H_kv groups, D head dim, D_idx index dim, k blocks kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from longsight.ops.errors import UnsupportedError
from longsight.ops.training.documents import Documents


def selection(
    index_q: Tensor,
    index_k: Tensor,
    docs: Documents,
    block_size: int,
    topk: int,
    local_blocks: int,
    init_blocks: int,
    dtypes: Sequence[torch.dtype],
) -> None:
    """Arguments of select_blocks."""
    index(index_q, index_k, docs, dtypes)
    block(block_size)
    if local_blocks < 1 or init_blocks < 0 or local_blocks + init_blocks > topk:
        raise UnsupportedError(
            f"local_blocks {local_blocks} and init_blocks {init_blocks} with topk {topk}: at least 1 local block, at "
            "least 0 initial ones, and together no more than topk"
        )


def attention(q: Tensor, k: Tensor, v: Tensor, docs: Documents, dtypes: Sequence[torch.dtype]) -> None:
    """q [T, H_q, D], k and v [T, H_kv, D] with H_q a multiple of H_kv."""
    queries_and_keys(q, k, docs, dtypes)
    if v.shape != k.shape:
        raise UnsupportedError(f"v {list(v.shape)} must have the shape of k, {list(k.shape)}")
    same("q, k and v", q, k, v)


def queries_and_keys(q: Tensor, k: Tensor, docs: Documents, dtypes: Sequence[torch.dtype]) -> None:
    """q [T, H_q, D] and k [T, H_kv, D] with H_q a multiple of H_kv."""
    shape("q", q, (docs.rows, None, None))
    shape("k", k, (docs.rows, None, q.shape[2]))
    not_empty("q", q)
    heads(q, k)
    same("q and k", q, k)
    dtype("q", q, dtypes)


def heads(q: Tensor, k: Tensor) -> None:
    """H_q, at least one, is a multiple of H_kv."""
    if k.shape[1] == 0 or q.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise UnsupportedError(f"{q.shape[1]} query heads are not a positive multiple of {k.shape[1]} KV heads")


def index(index_q: Tensor, index_k: Tensor, docs: Documents, dtypes: Sequence[torch.dtype]) -> None:
    """index_q [T, H_kv, D_idx], index_k [T, D_idx]."""
    shape("index_q", index_q, (docs.rows, None, None))
    shape("index_k", index_k, (docs.rows, index_q.shape[2]))
    not_empty("index_q", index_q)
    same("index_q and index_k", index_q, index_k)
    dtype("index_q", index_q, dtypes)


def divergence(
    index_q: Tensor,
    index_k: Tensor,
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    weight: Tensor | None,
    docs: Documents,
    dtypes: Sequence[torch.dtype],
) -> None:
    """Arguments that both KL operators share. lse [T, H_q] and weight [T] are fp32, or fp64 if the inputs are."""
    index(index_q, index_k, docs, dtypes)
    queries_and_keys(q, k, docs, dtypes)
    same("index_q and q", index_q, q)
    if index_q.shape[1] != k.shape[1]:
        raise UnsupportedError(f"index_q has {index_q.shape[1]} heads, one per KV head is {k.shape[1]}")
    shape("lse", lse, q.shape[:2])
    floats = (torch.float64, torch.float32) if q.dtype == torch.float64 else (torch.float32,)
    dtype("lse", lse, floats)
    device("lse", lse, q)
    if weight is not None:
        shape("weight", weight, (docs.rows,))
        dtype("weight", weight, floats)
        device("weight", weight, q)


def chosen(ids: Tensor, docs: Documents, groups: int, block_size: int, like: Tensor) -> None:
    """ids int32 [T, H_kv, k]: per row and group strictly ascending, none after the row's own block, then -1."""
    block(block_size)
    shape("ids", ids, (docs.rows, groups, None))
    not_empty("ids", ids)
    dtype("ids", ids, (torch.int32,))
    device("ids", ids, like)
    own = (docs.positions // block_size).to(ids.device)[:, None, None]
    used = ids >= 0
    steps_up = (ids[..., 1:] > ids[..., :-1]) | ~used[..., 1:]
    padding_last = used[..., :-1] | ~used[..., 1:]
    if not ((ids >= -1) & (ids <= own)).all() or not (steps_up & padding_last).all():
        raise UnsupportedError(
            "ids must ascend strictly within each row and group, name no block after the row's own, and end in -1"
        )


def scale(given: float | None, dim: int) -> float:
    """What scores are multiplied by: `given`, which must be positive and finite, or 1/sqrt(dim)."""
    if given is None:
        return float(dim**-0.5)
    if not 0 < given < math.inf:
        raise UnsupportedError(f"scale {given} is not a positive number")
    return given


def block(block_size: int) -> None:
    """A positive number of tokens."""
    if block_size < 1:
        raise UnsupportedError(f"block_size {block_size} is not positive")


def shape(name: str, x: Tensor, accepted: Sequence[int | None]) -> None:
    """None in `accepted` leaves a size free."""
    fits = len(accepted) == x.ndim and all(
        want is None or want == size for want, size in zip(accepted, x.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in accepted)
        raise UnsupportedError(f"{name} must have shape [{wanted}], got {list(x.shape)}")


def not_empty(name: str, x: Tensor) -> None:
    """At least one of everything that a row holds, though there may be no rows."""
    if 0 in x.shape[1:]:
        raise UnsupportedError(f"{name} {list(x.shape)} holds nothing in a row")


def dtype(name: str, x: Tensor, accepted: Sequence[torch.dtype]) -> None:
    """One of the dtypes named."""
    if x.dtype not in accepted:
        raise UnsupportedError(f"{name} is {x.dtype}; accepted: {', '.join(str(each) for each in accepted)}")


def same(names: str, first: Tensor, *others: Tensor) -> None:
    """One dtype, one device."""
    if any(x.dtype != first.dtype or x.device != first.device for x in others):
        found = ", ".join(f"{x.dtype} on {x.device}" for x in (first, *others))
        raise UnsupportedError(f"{names} must have one dtype and device, got {found}")


def device(name: str, x: Tensor, like: Tensor) -> None:
    """The device of `like`."""
    if x.device != like.device:
        raise UnsupportedError(f"{name} is on {x.device}, the other tensors on {like.device}")
