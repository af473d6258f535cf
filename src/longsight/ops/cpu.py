"""The compiled CPU backend. Arguments are checked here; the arithmetic is in csrc/, the meaning in ops/reference.py."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from longsight.ops import kernels
from longsight.ops.batch import Batch
from longsight.ops.errors import UnsupportedError
from longsight.ops.layout import DTYPES, LayerPages
from longsight.ops.weights import PackedExperts, PackedLinear

NAME = "cpu"
MAX_GROUP = 64
# Rows of a mixture-of-experts call at a time: bounds its workspace to about this many times topk rows of each width.
MOE_ROWS = 2048


class ScreenFrom(NamedTuple):
    """Tokens in sight from which a scan of 8-bit copies first is faster, for many query rows and for a few.

    Measured by `python -m bench screen`; it changes speed only.
    """

    prefill: int
    decode: int


screen_from = ScreenFrom(1 << 15, 1 << 17)


def screens(dtype: torch.dtype, tokens: int) -> bool:
    return dtype == torch.bfloat16 and tokens >= min(screen_from) and kernels.screens()


def append_kv(pages: LayerPages, batch: Batch, k: Tensor, v: Tensor, index_k: Tensor | None) -> None:
    layout = pages.layout
    _check(k, "k", layout.dtype, (batch.rows, layout.kv_heads, layout.head_dim), rows_only=True)
    _check(v, "v", layout.dtype, (batch.rows, layout.kv_heads, layout.head_dim), rows_only=True)
    if (index_k is None) != (pages.index_k is None):
        raise UnsupportedError("index keys must be given exactly for layers whose pages hold them")
    if index_k is not None:
        _check(index_k, "index_k", layout.dtype, (batch.rows, layout.index_dim), rows_only=True)
    batch.check_pages(layout.block_size, pages.k.shape[0])
    kernels.call(
        "ls_append_kv",
        kernels.AppendArgs(
            k.data_ptr(),
            v.data_ptr(),
            0 if index_k is None else index_k.data_ptr(),
            pages.k.data_ptr(),
            pages.v.data_ptr(),
            0 if pages.index_k is None else pages.index_k.data_ptr(),
            0 if pages.index_codes is None else pages.index_codes.data_ptr(),
            _batch(batch),
            layout.kv_heads,
            layout.head_dim,
            layout.index_dim,
            layout.block_size,
            k.stride(0),
            v.stride(0),
            0 if index_k is None else index_k.stride(0),
            layout.dtype == torch.bfloat16,
            torch.get_num_threads(),
        ),
    )


def select_blocks(
    index_q: Tensor, pages: LayerPages, batch: Batch, *, topk: int, local_blocks: int = 1, init_blocks: int = 0
) -> Tensor:
    layout = pages.layout
    if pages.index_k is None:
        raise UnsupportedError("this layer's pages hold no index keys, so there is nothing to select from")
    if local_blocks < 1 or init_blocks < 0 or local_blocks + init_blocks > topk:
        raise UnsupportedError(
            f"topk {topk} must hold the {local_blocks} local (at least 1) and {init_blocks} initial blocks"
        )
    if index_q.ndim != 3 or index_q.shape[1] < 1:
        raise UnsupportedError(
            f"index_q must be [T, groups, {layout.index_dim}] with at least one group, got {list(index_q.shape)}"
        )
    groups = index_q.shape[1]
    _check(index_q, "index_q", layout.dtype, (batch.rows, groups, layout.index_dim))
    batch.check_pages(layout.block_size, pages.k.shape[0])
    ids = torch.empty(batch.rows, groups, topk, dtype=torch.int32)
    kernels.call(
        "ls_select_blocks",
        kernels.SelectArgs(
            index_q.data_ptr(),
            pages.index_k.data_ptr(),
            0 if pages.index_codes is None else pages.index_codes.data_ptr(),
            0 if pages.screen_pauses is None else pages.screen_pauses.data_ptr(),
            ids.data_ptr(),
            _batch(batch),
            groups,
            layout.index_dim,
            layout.block_size,
            topk,
            local_blocks,
            init_blocks,
            screen_from.prefill // layout.block_size,
            screen_from.decode // layout.block_size,
            layout.dtype == torch.bfloat16,
            torch.get_num_threads(),
        ),
        ids,
    )
    return ids


def sparse_attention(
    q: Tensor, pages: LayerPages, batch: Batch, ids: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    wanted = (batch.rows, pages.layout.kv_heads)
    if ids.dtype != torch.int32 or ids.ndim != 3 or ids.shape[:2] != wanted or ids.shape[2] < 1:
        raise UnsupportedError(
            f"ids must be int32 [{batch.rows}, {pages.layout.kv_heads}, k] (token, group, slot) with k at least 1, "
            f"got {ids.dtype} {list(ids.shape)}"
        )
    return _attention(q, pages, batch, ids.contiguous(), scale)


def dense_attention(q: Tensor, pages: LayerPages, batch: Batch, *, scale: float | None = None) -> tuple[Tensor, Tensor]:
    return _attention(q, pages, batch, None, scale)


def _attention(
    q: Tensor, pages: LayerPages, batch: Batch, ids: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    layout = pages.layout
    if q.ndim != 3 or q.shape[1] % layout.kv_heads or not 1 <= q.shape[1] // layout.kv_heads <= MAX_GROUP:
        raise UnsupportedError(
            f"q must be [T, heads, {layout.head_dim}] with 1 to {MAX_GROUP} heads per group of {layout.kv_heads}, "
            f"got {list(q.shape)}"
        )
    heads = q.shape[1]
    _check(q, "q", layout.dtype, (batch.rows, heads, layout.head_dim))
    batch.check_pages(layout.block_size, pages.k.shape[0])
    scale = layout.head_dim**-0.5 if scale is None else scale
    if not scale > 0:
        raise UnsupportedError(f"scale {scale} must be positive")
    out = torch.empty_like(q)
    lse = torch.empty(batch.rows, heads)
    kernels.call(
        "ls_attention",
        kernels.AttentionArgs(
            q.data_ptr(),
            pages.k.data_ptr(),
            pages.v.data_ptr(),
            0 if ids is None else ids.data_ptr(),
            out.data_ptr(),
            lse.data_ptr(),
            _batch(batch),
            heads,
            layout.kv_heads,
            layout.head_dim,
            layout.block_size,
            0 if ids is None else ids.shape[2],
            scale,
            layout.dtype == torch.bfloat16,
            torch.get_num_threads(),
        ),
        out,
        lse,
    )
    return out, lse


def linear(x: Tensor, weight: PackedLinear) -> Tensor:
    _check(x, "x", weight.data.dtype, (x.shape[0], weight.in_features), rows_only=True)
    y = torch.empty(x.shape[0], weight.out_features, dtype=x.dtype)
    kernels.call(
        "ls_linear",
        kernels.LinearArgs(
            x.data_ptr(),
            weight.data.data_ptr(),
            y.data_ptr(),
            x.shape[0],
            weight.in_features,
            weight.out_features,
            weight.padded_out,
            x.stride(0),
            x.dtype == torch.bfloat16,
            torch.get_num_threads(),
        ),
        y,
    )
    return y


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    _check(x, "x", weight.dtype, (x.shape[0], weight.shape[0]), rows_only=True)
    y = torch.empty(x.shape, dtype=x.dtype)
    _norm(x, weight, y, None, None, 1, eps)
    return y


def norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    rows, heads, dim = x.shape
    _check(x, "x", weight.dtype, (rows, heads, weight.shape[0]), rows_only=True)
    _check(cos, "cos", torch.float32, (rows, cos.shape[-1]))
    _check(sin, "sin", torch.float32, (rows, cos.shape[-1]))
    if 2 * cos.shape[-1] > dim:
        raise UnsupportedError(f"{cos.shape[-1]} rotated pairs do not fit {dim} channels")
    y = torch.empty(x.shape, dtype=x.dtype)
    _norm(x, weight, y, cos, sin, heads, eps)
    return y


def _norm(x: Tensor, weight: Tensor, y: Tensor, cos: Tensor | None, sin: Tensor | None, heads: int, eps: float) -> None:
    if weight.shape[0] % 16:
        raise UnsupportedError(f"a norm over {weight.shape[0]} channels: must be a multiple of 16")
    kernels.call(
        "ls_norm",
        kernels.NormArgs(
            x.data_ptr(),
            weight.data_ptr(),
            y.data_ptr(),
            0 if cos is None else cos.data_ptr(),
            0 if sin is None else sin.data_ptr(),
            x.shape[0],
            heads,
            weight.shape[0],
            0 if cos is None else cos.shape[-1],
            x.stride(0),
            eps,
            x.dtype == torch.bfloat16,
            torch.get_num_threads(),
        ),
        y,
    )


def swiglu(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    _check(gate_up, "gate_up", gate_up.dtype, (rows, 2 * width))
    y = torch.empty(rows, width, dtype=gate_up.dtype)
    kernels.call(
        "ls_swiglu",
        kernels.SwigluArgs(
            gate_up.data_ptr(),
            y.data_ptr(),
            rows,
            width,
            alpha,
            limit,
            gate_up.dtype == torch.bfloat16,
            torch.get_num_threads(),
        ),
        y,
    )
    return y


def add(y: Tensor, x: Tensor) -> Tensor:
    _add(y, x, accumulate=True)
    return y


def route(x: Tensor, weight: PackedLinear, bias: Tensor, topk: int, scale: float) -> tuple[Tensor, Tensor]:
    rows, experts = x.shape[0], weight.out_features
    _check(bias, "bias", torch.float32, (experts,))
    if not 1 <= topk <= experts:
        raise UnsupportedError(f"topk {topk} must lie between 1 and the {experts} experts")
    if x.dtype != torch.float32:
        wide = torch.empty(x.shape, dtype=torch.float32)
        _add(wide, x, accumulate=False)
        x = wide
    logits = linear(x, weight)
    ids, weights = torch.empty(rows, topk, dtype=torch.int64), torch.empty(rows, topk)
    kernels.call(
        "ls_route",
        kernels.RouteArgs(
            logits.data_ptr(),
            bias.data_ptr(),
            ids.data_ptr(),
            weights.data_ptr(),
            rows,
            experts,
            topk,
            scale,
            torch.get_num_threads(),
        ),
        ids,
        weights,
    )
    return ids, weights


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    _check(logits, "logits", logits.dtype, tuple(logits.shape))
    rows, vocab = logits.shape
    ids, best = torch.empty(rows, dtype=torch.int32), torch.empty(rows, dtype=torch.float32)
    kernels.call(
        "ls_likeliest",
        kernels.LikeliestArgs(
            logits.data_ptr(),
            ids.data_ptr(),
            best.data_ptr(),
            rows,
            vocab,
            logits.dtype == torch.bfloat16,
            torch.get_num_threads(),
        ),
        ids,
        best,
    )
    return ids, best


def _add(y: Tensor, x: Tensor, *, accumulate: bool) -> None:
    _check(y, "y", y.dtype, tuple(y.shape))
    _check(x, "x", x.dtype, tuple(y.shape))
    kernels.call(
        "ls_add",
        kernels.AddArgs(
            y.data_ptr(),
            x.data_ptr(),
            y.numel(),
            y.dtype == torch.bfloat16,
            x.dtype == torch.bfloat16,
            accumulate,
            torch.get_num_threads(),
        ),
        y,
    )


def moe(
    x: Tensor, expert_ids: Tensor, expert_weights: Tensor, experts: PackedExperts, alpha: float, limit: float
) -> Tensor:
    rows, hidden = x.shape
    topk, count = expert_ids.shape[1], len(experts.down)
    _check(x, "x", experts.down[0].data.dtype, (rows, experts.down[0].out_features))
    _check(expert_ids, "expert_ids", torch.int64, (rows, topk))
    _check(expert_weights, "expert_weights", torch.float32, (rows, topk))
    if hidden % 16 or experts.down[0].in_features % 16:
        raise UnsupportedError(f"experts of {hidden} x {experts.down[0].in_features}: both must be multiples of 16")
    gate_up, down = experts.addresses
    y = torch.empty(rows, hidden)
    for begin in range(0, rows, MOE_ROWS):
        part = slice(begin, min(begin + MOE_ROWS, rows))
        kernels.call(
            "ls_moe",
            kernels.MoeArgs(
                x[part].data_ptr(),
                expert_ids[part].data_ptr(),
                expert_weights[part].data_ptr(),
                ctypes.addressof(gate_up),
                ctypes.addressof(down),
                y[part].data_ptr(),
                part.stop - begin,
                hidden,
                experts.down[0].in_features,
                count,
                topk,
                alpha,
                limit,
                x.dtype == torch.bfloat16,
                torch.get_num_threads(),
            ),
            y,
        )
    return y


def _batch(batch: Batch) -> kernels.BatchArgs:
    return kernels.BatchArgs(
        batch.cu_seqlens.data_ptr(),
        batch.kv_lens.data_ptr(),
        batch.block_table.data_ptr(),
        batch.kv_lens.shape[0],
        batch.block_table.shape[1],
    )


def _check(x: Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...], *, rows_only: bool = False) -> None:
    """Refuse what a kernel would misread. `rows_only`: rows may be strided, everything inside a row is contiguous."""
    if tuple(x.shape) != shape or x.dtype != dtype or dtype not in (*DTYPES, torch.int64):
        raise UnsupportedError(f"{name} must be {dtype} {list(shape)}, got {x.dtype} {list(x.shape)}")
    inner = x[0] if rows_only and x.shape[0] else x
    if x.device.type != "cpu" or not inner.is_contiguous():
        raise UnsupportedError(f"{name} must be contiguous in CPU memory, got strides {x.stride()} on {x.device}")
