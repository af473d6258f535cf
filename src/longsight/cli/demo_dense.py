"""What the demo's prompt would have cost with dense attention: measured where that is feasible, then extrapolated."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from longsight.ops import Batch, LayerPages
from longsight.ops.cost import AttentionShape, exact_dense_prefill_flops

if TYPE_CHECKING:
    from longsight.model import Model

ROWS = 512
CONTEXTS = (4096, 16384, 32768, 65536)


@dataclass(frozen=True)
class DensePrice:
    """Our own dense attention of one layer.

    points: (mean context of the rows timed, seconds per token) as measured. longest: the context measured up to,
    tokens. rate: the best seen, FLOP/s.
    """

    points: list[tuple[int, float]]
    longest: int
    rate: float
    shape: AttentionShape

    def seconds_per_token(self, context: int) -> float:
        return exact_dense_prefill_flops(self.shape, context + 1, context) / self.rate

    def prompt_seconds(self, tokens: int) -> float:
        """One layer, a whole prompt."""
        return exact_dense_prefill_flops(self.shape, tokens) / self.rate


def price_dense(model: Model, tokens: int) -> DensePrice:
    """Time dense attention over random keys at the end of a few contexts; the best rate seen is extrapolated."""
    config = model.config
    shape = config.shape().attention
    contexts = [c for c in CONTEXTS if c <= tokens] or [tokens]
    largest = contexts[-1]
    pages = LayerPages.allocate(config.page_layout(0, model.dtype), -(-largest // config.block_size))
    for pool in (pages.k, pages.v):
        pool.copy_(torch.randn(pool.shape[-1]).to(pool.dtype).expand(pool.shape))
    points, rate = [], 0.0
    for context in contexts:
        rows = min(ROWS, context)
        q = torch.randn(rows, config.num_heads, config.head_dim).to(model.dtype)
        batch = Batch.build([(rows, context, range(-(-context // config.block_size)))])
        seconds = min(_timed(model, q, pages, batch) for _ in range(3))
        points.append((context - rows // 2, seconds / rows))
        rate = max(rate, exact_dense_prefill_flops(shape, context, context - rows) / seconds)
    return DensePrice(points, largest, rate, shape)


def _timed(model: Model, q: torch.Tensor, pages: LayerPages, batch: Batch) -> float:
    started = time.perf_counter()
    model.backend.dense_attention(q, pages, batch)
    return time.perf_counter() - started
