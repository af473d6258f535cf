"""The attention of one transformers layer through our operators, with or without a cache, with or without gradients.

Legend: B batch, T places, R tokens among them (rows.py), C hidden size, H_q query heads, H_kv key/value heads (and as
many index heads), D head dim, D_idx index dim, r rotated channels, k blocks kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from longsight.hf.backends import backend_for, training_for
from longsight.hf.cache import PagedLayer, paged_layer
from longsight.hf.rows import Rows, document_lengths
from longsight.ops import PageLayout, UnsupportedError, training

NAME = "longsight"
CHUNK = 1024  # rows whose queries exist at a time: bounds what a long prompt takes beyond its pages

# Sees (layer, ids int32 [R, H_kv, k]) of each sparse layer once its rows have attended.
OnSelect = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Branches:
    """What one attention module projects: norms per head where it has them, then RoPE. x [n, C] -> [n, heads, dim].

    indexer: transformers' M3 indexer, or our IndexBranch, which has the same names; None in a layer without.
    """

    module: Any
    indexer: Any | None
    block_size: int

    def queries(self, x: Tensor, tables: Tables) -> Tensor:
        return rotate(self._heads("q", x), tables.cos, tables.sin)

    def keys(self, x: Tensor, tables: Tables) -> Tensor:
        return rotate(self._heads("k", x), tables.cos, tables.sin)

    def values(self, x: Tensor) -> Tensor:
        y: Tensor = self.module.v_proj(x)
        return y.view(x.shape[0], -1, self.module.head_dim)

    def index_queries(self, x: Tensor, tables: Tables) -> Tensor:
        return self._index("q", x, tables)

    def index_keys(self, x: Tensor, tables: Tables) -> Tensor:
        """[n, D_idx]: one head that all groups share."""
        return self._index("k", x, tables)[:, 0]

    def _heads(self, which: str, x: Tensor) -> Tensor:
        y = getattr(self.module, f"{which}_proj")(x).view(x.shape[0], -1, self.module.head_dim)
        norm = getattr(self.module, f"{which}_norm", None)
        out: Tensor = y if norm is None else norm(y)
        return out

    def _index(self, which: str, x: Tensor, tables: Tables) -> Tensor:
        indexer = self.indexer
        assert indexer is not None
        y = getattr(indexer, f"{which}_proj")(x).view(x.shape[0], -1, indexer.head_dim)
        return rotate(getattr(indexer, f"{which}_norm")(y), tables.index_cos, tables.index_sin)


@dataclass(frozen=True)
class Tables:
    """cos and sin of each token, [R, r], for the main branch and for the index branch."""

    cos: Tensor
    sin: Tensor
    index_cos: Tensor
    index_sin: Tensor

    def at(self, part: slice) -> Tables:
        return Tables(self.cos[part], self.sin[part], self.index_cos[part], self.index_sin[part])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on the first r channels, half-split, in the order of operations of transformers. x [n, H, D], cos [n, r]."""
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    a, b = turned.chunk(2, -1)
    # The cast is for autocast, under which tables are wider than projections.
    turned = (turned * cos[:, None] + torch.cat((-b, a), -1) * sin[:, None]).to(x.dtype)
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned


def forward(
    branches: Branches,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: object = None,
    cache: Cache | None = None,
    *,
    past_key_values: Cache | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    on_select: OnSelect | None = None,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """What an attention module of transformers returns: its output [B, T, C], and no weights.

    attention_mask: what rows.mask_function made, or None for a step without padding. cache: past_key_values is the name
    it has before transformers 5.24. Raises UnsupportedError for masks of another kind, for attention dropout, and where
    gradients are wanted through a cache.
    """
    module = branches.module
    cache = past_key_values if cache is None else cache
    if module.training and module.attention_dropout:
        raise UnsupportedError(f"attention_dropout {module.attention_dropout} in training: longsight has no dropout")
    rows = _rows(attention_mask, hidden_states)
    tables = row_tables(branches, rows, position_embeddings)
    x = rows.tokens(hidden_states)
    counts = rows.counts
    if cache is None:
        if any(rows.past or ()):
            raise UnsupportedError(f"attention_mask shows {list(rows.past or ())} past tokens, but there is no cache")
        counts = document_lengths(rows, position_ids, cu_seq_lens_q)
    elif cu_seq_lens_q is not None:
        raise UnsupportedError("cu_seq_lens_q packs documents into one row, which a cache cannot hold: use_cache=False")
    layer = None if cache is None else paged_layer(cache, module.layer_idx)
    see = None if on_select is None else _see(on_select, module.layer_idx)
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in module.parameters())):
        out = _with_gradients(branches, x, tables, counts, rows, layer, see)
    else:
        with torch.no_grad():
            out = _through_pages(branches, x, tables, counts, rows, layer, see)
    return rows.places_of(out), None


def _through_pages(
    branches: Branches,
    x: Tensor,
    tables: Tables,
    counts: tuple[int, ...],
    rows: Rows,
    layer: PagedLayer | None,
    see: Callable[[Tensor], None] | None,
) -> Tensor:
    """x [R, C] -> [R, C]: write the pages of all rows, then attend with a chunk of queries at a time."""
    module, indexer = branches.module, branches.indexer
    if not x.shape[0]:
        return x
    k, v = branches.keys(x, tables), branches.values(x)
    index_k = None if indexer is None else branches.index_keys(x, tables)
    layout = PageLayout(
        branches.block_size, k.shape[1], module.head_dim, 0 if indexer is None else indexer.head_dim, k.dtype
    )
    if layer is None:
        layer, rows = PagedLayer(), Rows.of_documents(counts)
    placed = layer.append(rows, layout, k.contiguous(), v, index_k)
    backend = backend_for(x.device)
    out, chosen = [], []
    for begin in range(0, x.shape[0], CHUNK):
        part = slice(begin, min(begin + CHUNK, x.shape[0]))
        batch, now = placed.part(part.start, part.stop), tables.at(part)
        q = branches.queries(x[part], now).contiguous()
        if indexer is None:
            y, _ = backend.dense_attention(q, placed.pages, batch, scale=module.scaling)
        else:
            index_q = branches.index_queries(x[part], now).contiguous()
            ids = backend.select_blocks(
                index_q, placed.pages, batch, topk=indexer.topk_blocks, local_blocks=indexer.local_blocks
            )
            y, _ = backend.sparse_attention(q, placed.pages, batch, ids, scale=module.scaling)
            chosen += [ids] if see is not None else []
        out.append(module.o_proj(y.flatten(1)))
    if see is not None and chosen:
        see(torch.cat(chosen))
    return torch.cat(out)


def _with_gradients(
    branches: Branches,
    x: Tensor,
    tables: Tables,
    counts: tuple[int, ...],
    rows: Rows,
    layer: PagedLayer | None,
    see: Callable[[Tensor], None] | None,
) -> Tensor:
    """x [R, C] -> [R, C] by the operators with gradients; none reach the index branch, whose choice is a constant."""
    if layer is not None and layer.get_seq_length():
        raise UnsupportedError("gradients do not reach what a cache holds: run with torch.no_grad() or use_cache=False")
    module, indexer = branches.module, branches.indexer
    ops = training_for(x.device)
    documents = training.Documents.of_lengths(counts)
    q, k, v = branches.queries(x, tables), branches.keys(x, tables), branches.values(x)
    if indexer is None:
        y, _ = ops.dense_attention(q, k, v, documents, scale=module.scaling)
    else:
        with torch.no_grad():
            index_k = branches.index_keys(x, tables)
            ids = ops.select_blocks(
                branches.index_queries(x, tables),
                index_k,
                documents,
                block_size=branches.block_size,
                topk=indexer.topk_blocks,
                local_blocks=indexer.local_blocks,
            )
        y, _ = ops.sparse_attention(q, k, v, ids, documents, block_size=branches.block_size, scale=module.scaling)
        if see is not None:
            see(ids)
    if layer is not None:
        width = 0 if indexer is None else indexer.head_dim
        layout = PageLayout(branches.block_size, k.shape[1], module.head_dim, width, k.dtype)
        layer.append(rows, layout, k.detach().contiguous(), v.detach(), None if indexer is None else index_k)
    out: Tensor = module.o_proj(y.flatten(1))
    return out


def _rows(attention_mask: object, hidden_states: Tensor) -> Rows:
    if attention_mask is None:
        return Rows(*hidden_states.shape[:2])
    if isinstance(attention_mask, Rows):
        return attention_mask
    shape = list(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
    raise UnsupportedError(f"attention_mask must be [B, tokens] or None, got {shape}: no other mask is supported")


def row_tables(branches: Branches, rows: Rows, position_embeddings: Sequence[Tensor]) -> Tables:
    cos, sin = (rows.tokens(table) for table in position_embeddings)
    indexer = branches.indexer
    if indexer is None:
        return Tables(cos, sin, cos, sin)
    narrow: Callable[[Tensor], Tensor] | None = getattr(indexer, "rotary_table", None)
    if narrow is not None:
        return Tables(cos, sin, narrow(cos), narrow(sin))
    return Tables(cos, sin, cos[:, : indexer.head_dim], sin[:, : indexer.head_dim])


def _see(on_select: OnSelect, layer: int) -> Callable[[Tensor], None]:
    return lambda ids: on_select(layer, ids)
