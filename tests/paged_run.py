"""Drives a model over several sequences in one page pool, as an engine would: odd chunks, shuffled pages, poison."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from longsight.model import Model
from longsight.ops import Batch


class PagedRun:
    """Sequences whose pages are scattered at random over a pool that starts as NaN.

    After a run, logits(s) [T, V] and blocks(s, layer) [T, H_kv, k] hold every row of sequence s in order.
    """

    def __init__(self, model: Model, sequences: Sequence[Tensor], seed: int = 0) -> None:
        self.model, self.sequences = model, sequences
        block = model.config.block_size
        counts = [-(-tokens.shape[0] // block) for tokens in sequences]
        order = torch.randperm(sum(counts) + 3, generator=torch.Generator().manual_seed(seed)).tolist()
        self.pages = [[order.pop() for _ in range(count)] for count in counts]
        self.cache = model.allocate_cache(sum(counts) + 3)
        for pages in self.cache:
            for tensor in (pages.k, pages.v, pages.index_k):
                if tensor is not None:
                    tensor.fill_(float("nan"))
        self.done = [0] * len(sequences)
        self._logits: list[list[Tensor]] = [[] for _ in sequences]
        self._blocks: list[dict[int, list[Tensor]]] = [defaultdict(list) for _ in sequences]

    def step(self, *counts: int) -> None:
        """Run the next counts[s] tokens of each sequence s together."""
        batch, tokens, spans = self.next_batch(counts)

        def note(layer: int, ids: Tensor) -> None:
            for s, span in spans.items():
                self._blocks[s][layer].append(ids[span].clone())

        logits = self.model.forward(tokens, batch, self.cache, on_select=note)
        for s, span in spans.items():
            self._logits[s].append(logits[span])

    def next_batch(self, counts: Sequence[int]) -> tuple[Batch, Tensor, dict[int, slice]]:
        """The batch, tokens and row spans of the next step; the sequences advance."""
        parts, tokens, spans, row = [], [], {}, 0
        for s, count in enumerate(counts):
            if count == 0:
                continue
            start, self.done[s] = self.done[s], self.done[s] + count
            parts.append((count, self.done[s], self.pages[s]))
            tokens.append(self.sequences[s][start : self.done[s]])
            spans[s] = slice(row, row + count)
            row += count
        return Batch.build(parts), torch.cat(tokens), spans

    def logits(self, s: int = 0) -> Tensor:
        return torch.cat(self._logits[s])

    def blocks(self, layer: int, s: int = 0) -> Tensor:
        return torch.cat(self._blocks[s][layer])


def chunks(total: int, sizes: Sequence[int]) -> Iterator[int]:
    """`sizes` over and over until they sum to `total`; the last is cut."""
    i = 0
    while total:
        size = min(sizes[i % len(sizes)], total)
        yield size
        total, i = total - size, i + 1
