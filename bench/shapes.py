"""The shapes of MiniMax-M3's attention, their work in FLOPs and bytes, and random data of those shapes.

Legend: n tokens, T query rows, H_q query heads, H_kv groups, D head dim, D_idx index dim, B block size, k blocks kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longsight.ops import Batch, LayerPages, PageLayout
from longsight.ops.layout import pack


@dataclass(frozen=True)
class Shape:
    """One layer's heads and blocks; the defaults are MiniMax-M3's."""

    heads: int = 64
    kv_heads: int = 4
    dim: int = 128
    index_dim: int = 128
    block: int = 128
    topk: int = 16

    @property
    def layout(self) -> PageLayout:
        return PageLayout(self.block, self.kv_heads, self.dim, self.index_dim, torch.bfloat16)

    @property
    def token_bytes(self) -> int:
        """bf16 bytes of one token's keys and values."""
        return 4 * self.kv_heads * self.dim

    @property
    def index_bytes(self) -> int:
        """bf16 bytes of one token's index key."""
        return 2 * self.index_dim

    def dense_flops(self, rows: int, kv_len: int) -> int:
        """Causal attention of the last `rows` of `kv_len` tokens: 4 H_q D per query-key pair (an FMA counts 2)."""
        return 4 * self.heads * self.dim * attended(rows, kv_len)

    def scan_flops(self, rows: int, kv_len: int) -> int:
        """Index scores of the same rows: 2 H_kv D_idx per query-key pair."""
        return 2 * self.kv_heads * self.index_dim * attended(rows, kv_len)

    def main_flops(self, rows: int, kv_len: int) -> int:
        """Attention over the chosen blocks: like dense, with at most k B keys (less what the own block hides)."""
        full = min(rows, max(kv_len - self.topk * self.block, 0))
        short = rows - full
        # A row that sees more than k blocks attends (k - 1) B tokens and what is visible of its own block.
        first = kv_len - full
        own = sum((p % self.block) + 1 for p in range(first, kv_len))
        return 4 * self.heads * self.dim * (full * (self.topk - 1) * self.block + own + attended(short, kv_len - full))

    def published_ratio(self, n: int) -> float:
        """Dense over sparse FLOPs of a whole prompt as published: the main branch charged k B keys for every query."""
        dense = 2 * self.heads * self.dim * n
        return dense / (self.kv_heads * self.index_dim * n + 4 * self.heads * self.dim * self.topk * self.block)


M3 = Shape()


def attended(rows: int, kv_len: int) -> int:
    """Query-key pairs of the last `rows` of `kv_len` tokens under a causal mask."""
    return rows * (kv_len - rows) + rows * (rows + 1) // 2


def tokens(n: int) -> str:
    """8192 -> 8K, 1048576 -> 1M; other numbers as they are."""
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if n >= size and n % size == 0:
            return f"{n // size}{unit}"
    return str(n)


def random_pages(shape: Shape, n: int, seed: int, *, kv: bool = True, index_keys: Tensor | None = None) -> LayerPages:
    """Pages of `n` tokens of unit-normal keys, values and index keys; `kv` False leaves keys and values untouched.

    Packing permutes elements, so noise is drawn in packed order; `index_keys` [n, D_idx] replaces the noise there.
    """
    generator = torch.Generator().manual_seed(seed)
    pages = LayerPages.allocate(shape.layout, -(-n // shape.block))
    if kv:
        _fill(pages.k, generator)
        _fill(pages.v, generator)
    assert pages.index_k is not None
    if index_keys is None:
        _fill(pages.index_k, generator)
    else:
        padded = index_keys.new_zeros(pages.index_k.shape[0] * shape.block, shape.index_dim)
        padded[:n] = index_keys
        pages.index_k.copy_(pack(padded.unflatten(0, (-1, shape.block))))
    return pages


def with_codes(pages: LayerPages) -> LayerPages:
    """The same pages with 8-bit copies of their index keys, made as the engine makes them: by appending the keys."""
    from longsight.ops import cpu

    layout, count = pages.layout, pages.k.shape[0]
    # Keys and values stay as they are: small ones of no consequence go through the append in their place.
    small = LayerPages.allocate(PageLayout(layout.block_size, 1, 16, layout.index_dim, layout.dtype, True), count)
    appended = replace(small, index_k=pages.index_k)
    step = 64
    for first in range(0, count, step):
        n = min(step, count - first)
        keys = pages.index_keys(torch.arange(first, first + n)).flatten(0, 1)
        nothing = keys.new_zeros(keys.shape[0], 1, 16)
        batch = Batch.build([(keys.shape[0], keys.shape[0], range(first, first + n))])
        cpu.append_kv(appended, batch, nothing, nothing, keys)
    return replace(
        pages, layout=replace(layout, screened=True), index_codes=small.index_codes, screen_pauses=small.screen_pauses
    )


def _fill(tensor: Tensor, generator: torch.Generator) -> None:
    """Unit normal noise in pieces of 16 MiB, so that filling gigabytes needs no second copy."""
    flat = tensor.view(-1)
    for start in range(0, flat.shape[0], 1 << 23):
        flat[start : start + (1 << 23)].normal_(generator=generator)


def queries(rows: int, heads: int, dim: int, seed: int, scale: float = 1.0) -> Tensor:
    """Unit-normal bf16 [rows, heads, dim] times `scale`."""
    noise = torch.randn(rows, heads, dim, generator=torch.Generator().manual_seed(seed))
    return (noise * scale).to(torch.bfloat16)


def suffix_batch(rows: int, kv_len: int, block: int, first_page: int = 0) -> Batch:
    """The last `rows` tokens of one sequence of `kv_len` tokens whose pages lie in order."""
    return Batch.build([(rows, kv_len, range(first_page, first_page - (-kv_len // block)))])


def one_row(position: int, block: int) -> Batch:
    """The single row at `position`: what a reference is asked for when only samples are compared."""
    return suffix_batch(1, position + 1, block)


def smooth(rows: int, width: int, rho: float, rank: int, seed: int) -> Tensor:
    """bf16 [rows, width] of about unit variance and low rank whose rows drift: state[t] = rho state[t - 1] + noise.

    Neighbouring tokens of real text ask for much the same blocks; independent noise would not.
    """
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, rank, generator=generator) * (1 - rho * rho) ** 0.5
    state = torch.randn(rank, generator=generator)
    for t in range(rows):
        state = rho * state + states[t]
        states[t] = state
    mixed: Tensor = states @ torch.randn(rank, width, generator=generator) / rank**0.5
    return mixed.to(torch.bfloat16)


def overlap(ids: Tensor) -> float:
    """Mean share of a row's blocks that the next row chose too. ids int32 [T, H_kv, k]."""
    now, after = ids[:-1], ids[1:]
    shared = (now[..., :, None] == after[..., None, :]) & (now >= 0)[..., None]
    return shared.any(-1).sum().item() / max((now >= 0).sum().item(), 1)
