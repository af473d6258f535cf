"""The cache of a transformers model as pages: a step writes its own tokens and copies nothing.

A page holds keys, values and index keys of one block of tokens (ops/layout.py), so cropping, reordering for beams and
repeating a batch move all three together. Padding is never stored: blocks count from a sequence's first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from longsight.hf.backends import backend_for
from longsight.hf.rows import Rows
from longsight.hf.tables import PageTables
from longsight.ops import Batch, LayerPages, PageLayout, UnsupportedError

M3_SPARSE = "minimax_m3_sparse"  # transformers' name for layers with an index branch


@dataclass(frozen=True)
class Placed:
    """One step's rows and the pages they may read. lengths: tokens of each sequence, this step's included."""

    pages: LayerPages
    counts: tuple[int, ...]
    lengths: tuple[int, ...]
    table: Tensor  # int32 [S, max_blocks]

    def part(self, begin: int, end: int) -> Batch:
        """Rows begin .. end - 1 of the step as a batch of their own, each seeing what it saw in the whole."""
        cu, kv_lens, kept = [0], [], []
        start = 0
        for sequence, count in enumerate(self.counts):
            low, high = max(begin, start), min(end, start + count)
            if low < high:
                cu.append(high - begin)
                kv_lens.append(self.lengths[sequence] - (start + count - high))
                kept.append(sequence)
            start += count
        table = self.table if len(kept) == len(self.counts) else self.table[kept]
        return Batch.trusted(
            torch.tensor(cu, dtype=torch.int32),
            torch.tensor(kv_lens, dtype=torch.int32),
            table.contiguous(),
            self.pages.layout.block_size,
            self.pages.k.shape[0],
        )


class PagedLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's pages for a batch of sequences. reserve: tokens per sequence to take memory for at once.

    Without a reserve the pool doubles when it is full, and only then is anything copied.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, reserve: int = 0) -> None:
        super().__init__()
        self._reserve = reserve
        self.reset()

    def reset(self) -> None:
        self.is_initialized = False
        self.pages: LayerPages | None = None
        self._tables: PageTables | None = None
        self._table = torch.empty(0, 0, dtype=torch.int32)
        # Padded places so far as (places, which are tokens); runs without padding are one entry.
        self._steps: list[tuple[int, Tensor | None]] = []

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence, padding not counted."""
        return () if self._tables is None else tuple(self._tables.lengths)

    @property
    def batch_size(self) -> int:
        return -1 if self._tables is None else len(self._tables.lengths)

    def append(self, rows: Rows, layout: PageLayout, k: Tensor, v: Tensor, index_k: Tensor | None) -> Placed:
        """Write a step's tokens. k, v [R, H_kv, D], index_k [R, D_idx] or None, R the step's tokens in order of rows.

        Raises UnsupportedError if the batch changed or the mask hides tokens that earlier steps wrote.
        """
        if self._tables is None:
            self._tables = PageTables(rows.batch, layout.block_size)
            self.is_initialized = True
        if rows.batch != self.batch_size:
            raise UnsupportedError(f"a batch of {rows.batch} sequences for a cache of {self.batch_size}")
        if rows.past is not None and rows.past != self.lengths:
            raise UnsupportedError(
                f"attention_mask shows {list(rows.past)} past tokens, the cache holds {list(self.lengths)}: what was "
                "written cannot be masked later"
            )
        placed = self._place(rows.counts, layout, k.device)
        if rows.real is None and self._steps and self._steps[-1][1] is None:
            self._steps[-1] = (self._steps[-1][0] + rows.places, None)
        else:
            self._steps.append((rows.places, rows.real))
        backend_for(k.device).append_kv(placed.pages, placed.part(0, k.shape[0]), k, v, index_k)
        return placed

    def _place(self, counts: tuple[int, ...], layout: PageLayout, device: torch.device) -> Placed:
        tables = self._tables
        assert tables is not None
        copies, changed = tables.extend(counts)
        if self.pages is None:
            # In main memory pages that nobody writes take no room, so twice the pages cost nothing but save a copy.
            ahead = 2 if device.type == "cpu" else 1
            self.pages = allocate(layout, max(ahead * tables.pages, tables.pages_for(self._reserve)), device)
        elif self.pages.layout != layout:
            raise UnsupportedError(f"this cache holds pages of {self.pages.layout}, the layer writes {layout}")
        elif tables.pages > self.pages.k.shape[0]:
            grown = allocate(layout, max(tables.pages, 2 * self.pages.k.shape[0]), device)
            for old, new in zip(self.pages.tensors, grown.tensors, strict=True):
                new[: old.shape[0]].copy_(old)
            self.pages = grown
        for source, target in copies:
            self.pages.copy_page(source, target)
        if changed or self._table.shape[0] != len(counts):
            width = max(len(table) for table in tables.tables)
            padded = [table + [-1] * (width - len(table)) for table in tables.tables]
            self._table = torch.tensor(padded, dtype=torch.int32).view(len(counts), width)
        return Placed(self.pages, counts, self.lengths, self._table)

    def get_seq_length(self) -> int:
        """Places so far, padding included: transformers counts so."""
        return sum(places for places, _ in self._steps)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -tokens_to_remove places."""
        if tokens_to_remove > 0:
            raise UnsupportedError(f"crop takes minus the number of tokens to remove, got {tokens_to_remove}")
        left = min(-tokens_to_remove, self.get_seq_length())
        if self._tables is None or not left:
            return
        lengths = list(self._tables.lengths)
        while left:
            places, real = self._steps.pop()
            cut = min(places, left)
            gone = [cut] * len(lengths) if real is None else real[:, places - cut :].sum(1).tolist()
            lengths = [length - n for length, n in zip(lengths, gone, strict=True)]
            if cut < places:
                self._steps.append((places - cut, None if real is None else real[:, : places - cut]))
            left -= cut
        self._tables.truncate(lengths)
        self._table = self._table[:0]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx.tolist())

    def batch_select_indices(self, indices: Tensor) -> None:
        chosen = indices.nonzero()[:, 0] if indices.dtype == torch.bool else indices
        self._select(chosen.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select([i for i in range(self.batch_size) for _ in range(repeats)])

    def _select(self, sequences: Sequence[int]) -> None:
        if self._tables is None:
            return
        self._tables.select(sequences)
        self._steps = [(n, None if real is None else real[list(sequences)]) for n, real in self._steps]
        self._table = self._table[:0]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise UnsupportedError('pages are filled by attn_implementation="longsight" only')

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise UnsupportedError('pages are filled by attn_implementation="longsight" only')

    def offload(self) -> None:
        raise UnsupportedError("pages cannot be offloaded")


class PagedCache(Cache):  # type: ignore[misc]
    """A cache of pages for `generate(cache=...)`; a fresh DynamicCache becomes one by itself.

    The argument's name before transformers 5.24 is past_key_values.
    max_tokens: tokens per sequence to take memory for at once, so that not even a full pool is ever copied.
    """

    def __init__(self, max_tokens: int = 0) -> None:
        super().__init__(layer_class_to_replicate=partial(PagedLayer, max_tokens))


def allocate(layout: PageLayout, pages: int, device: torch.device) -> LayerPages:
    """Uninitialised pages on any device."""
    if device.type == "cpu":
        return LayerPages.allocate(layout, pages)
    return LayerPages.over(layout, pages, torch.empty(pages * layout.page_bytes, dtype=torch.uint8, device=device))


def paged_layer(cache: Cache, layer: int) -> PagedLayer:
    """Layer number `layer` of a cache, made of pages now if nothing was written to it yet.

    Raises UnsupportedError for a cache that something else filled, and for kinds other than a growing cache.
    """
    if cache.offloading:
        raise UnsupportedError("longsight attention keeps its pages where they are: use a cache without offloading")
    while len(cache.layers) <= layer:
        fresh = cache.layer_class_to_replicate() if cache.layer_class_to_replicate is not None else PagedLayer()
        cache.layers.append(fresh)
    found = cache.layers[layer]
    if isinstance(found, PagedLayer):
        return found
    # transformers 5.13 calls it layer_type.
    kind = getattr(found, "_layer_type", getattr(found, "layer_type", None))
    plain = type(found) is DynamicLayer or (isinstance(found, DynamicLayer) and kind == M3_SPARSE)
    if not plain or found.is_initialized:
        state = "already filled" if plain else "of a kind it cannot replace"
        raise UnsupportedError(
            f"longsight attention needs a PagedCache or an empty DynamicCache; layer {layer} is a "
            f"{type(found).__name__}, {state}"
        )
    paged = PagedLayer()
    cache.layers[layer] = paged
    return paged
