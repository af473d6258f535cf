"""How matrices lie in memory: one packing for keys, values, index keys and weights.

Every product in the model has the form ``C[m, n] = sum_k A[m, k] * B[n, k]`` with A row-major (activations, queries,
probabilities) and B packed once, when it is written, in the order a vector unit reads it:

    pack(B[N, K])  ->  [N / W, K / E, W, E]      W: strip width (64, 32 or 16 rows), E: elements per 32-bit lane

For bf16 E = 2 (a pair along K shares a lane, as the bf16 dot-product instructions want it), for fp32 E = 1. Reading a
strip front to back is one sequential stream, both from cache and from memory.

Shape legend: P pages, B block size in tokens (page = block), H_kv key/value heads, D head dim, D_idx index dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longsight.ops.errors import UnsupportedError
from longsight.ops.memory import advise_huge_pages

DTYPES = (torch.bfloat16, torch.float32)


def lane_elements(dtype: torch.dtype) -> int:
    """Elements of `dtype` in a 32-bit lane: 2 for bfloat16, 1 for float32."""
    if dtype not in DTYPES:
        raise UnsupportedError(f"dtype {dtype} is not supported; use torch.bfloat16 or torch.float32")
    return 4 // dtype.itemsize


def strip_width(n: int) -> int:
    """The widest strip (64, 32 or 16 rows) that divides `n`; `n` must be a positive multiple of 16."""
    for width in (64, 32, 16):
        if n > 0 and n % width == 0:
            return width
    raise UnsupportedError(f"{n} is not a positive multiple of 16")


def pack(x: Tensor) -> Tensor:
    """[..., N, K] row-major -> [..., N * K] packed (see the module's head)."""
    n, k = x.shape[-2:]
    w, e = strip_width(n), lane_elements(x.dtype)
    if k % e:
        raise UnsupportedError(f"inner size {k} is not a multiple of {e} for {x.dtype}")
    strips = x.reshape(*x.shape[:-2], n // w, w, k // e, e)
    return strips.transpose(-3, -2).flatten(-4).contiguous()


def unpack(x: Tensor, n: int, k: int) -> Tensor:
    """[..., N * K] packed -> [..., N, K] row-major: the inverse of `pack`."""
    w, e = strip_width(n), lane_elements(x.dtype)
    strips = x.reshape(*x.shape[:-1], n // w, k // e, w, e)
    return strips.transpose(-3, -2).reshape(*x.shape[:-1], n, k)


@dataclass(frozen=True)
class PageLayout:
    """The geometry of one layer's pages.

    block_size: tokens per page, a multiple of 16. head_dim, index_dim: multiples of 16, up to 256; index_dim 0 means a
    layer without an index branch. screened: each full page also holds 8-bit copies of its index keys, for long scans.
    """

    block_size: int
    kv_heads: int
    head_dim: int
    index_dim: int
    dtype: torch.dtype
    screened: bool = False

    def __post_init__(self) -> None:
        lane_elements(self.dtype)
        strip_width(self.block_size)
        for name in ("head_dim", "index_dim"):
            value = getattr(self, name)
            if name == "index_dim" and value == 0:
                continue
            if not 16 <= value <= 256 or value % 16:
                raise UnsupportedError(f"{name} {value} is not a multiple of 16 between 16 and 256")
        if self.kv_heads < 1:
            raise UnsupportedError(f"kv_heads {self.kv_heads} is not positive")
        if self.screened and (self.dtype != torch.bfloat16 or not self.index_dim):
            raise UnsupportedError("8-bit copies are made of bfloat16 index keys only")

    @property
    def code_bytes(self) -> int:
        """Bytes of one page's 8-bit copies: the codes, each channel's midrange in bf16 and three scales (screen.h)."""
        if not self.screened:
            return 0
        return -(-((self.block_size + 2) * self.index_dim + 12) // 64) * 64

    @property
    def page_bytes(self) -> int:
        """Bytes of one page of one layer: keys, values, index keys and their 8-bit copies together."""
        elements = self.block_size * (2 * self.kv_heads * self.head_dim + self.index_dim)
        return elements * self.dtype.itemsize + self.code_bytes


@dataclass(frozen=True)
class LayerPages:
    """One layer's page pool. A page id names the same page in all three tensors, and in every layer.

    k        [P, H_kv, B * D]   pack(keys[B, D]) per page and head
    v        [P, H_kv, B * D]   pack(values[B, D]^T): channels are the packed rows, so that P @ V streams
    index_k  [P, B * D_idx]     pack(index_keys[B, D_idx]); None in a full-attention layer
    index_codes  uint8 [P, code_bytes]  8-bit copies of the index keys of full pages; None unless the layout asks for it
    screen_pauses  int64 [2, 2]  what a kernel remembers of whether screening pays (csrc/select.h); no page's content
    """

    layout: PageLayout
    k: Tensor
    v: Tensor
    index_k: Tensor | None
    index_codes: Tensor | None = None
    screen_pauses: Tensor | None = None

    @classmethod
    def allocate(cls, layout: PageLayout, pages: int) -> LayerPages:
        """Uninitialised pages: memory is touched, and so taken, only when a page is written."""
        parts = [torch.empty(size, dtype=torch.uint8) for size in cls._sizes(layout, pages)]
        for part in parts:
            advise_huge_pages(part)
        return cls._of(layout, pages, parts)

    @classmethod
    def over(cls, layout: PageLayout, pages: int, memory: Tensor) -> LayerPages:
        """Pages in memory that is there already: uint8 [pages * layout.page_bytes], part after part."""
        return cls._of(layout, pages, memory.split(cls._sizes(layout, pages)))

    @property
    def tensors(self) -> list[Tensor]:
        """All that a page consists of, each [P, ...]."""
        return [part for part in (self.k, self.v, self.index_k, self.index_codes) if part is not None]

    @staticmethod
    def _sizes(layout: PageLayout, pages: int) -> list[int]:
        """Bytes of keys, values, index keys and their codes."""
        element_bytes = pages * layout.block_size * layout.dtype.itemsize
        kv = element_bytes * layout.kv_heads * layout.head_dim
        return [kv, kv, element_bytes * layout.index_dim, pages * layout.code_bytes]

    @classmethod
    def _of(cls, layout: PageLayout, pages: int, parts: Sequence[Tensor]) -> LayerPages:
        k, v = (part.view(layout.dtype).view(pages, layout.kv_heads, -1) for part in parts[:2])
        index_k = parts[2].view(layout.dtype).view(pages, -1) if layout.index_dim else None
        if not layout.screened:
            return cls(layout, k, v, index_k)
        return cls(layout, k, v, index_k, parts[3].view(pages, -1), torch.zeros(2, 2, dtype=torch.int64))

    def keys(self, ids: Tensor) -> Tensor:
        """Plain keys of pages `ids` [N]: [N, H_kv, B, D]."""
        return unpack(self.k[ids], self.layout.block_size, self.layout.head_dim)

    def values(self, ids: Tensor) -> Tensor:
        """Plain values of pages `ids` [N]: [N, H_kv, B, D]."""
        return unpack(self.v[ids], self.layout.head_dim, self.layout.block_size).transpose(-1, -2)

    def index_keys(self, ids: Tensor) -> Tensor:
        """Plain index keys of pages `ids` [N]: [N, B, D_idx]."""
        if self.index_k is None:
            raise UnsupportedError("this layer has no index branch, so its pages hold no index keys")
        return unpack(self.index_k[ids], self.layout.block_size, self.layout.index_dim)

    def copy_page(self, source: int, target: int) -> None:
        """Make page `target` a copy of page `source`."""
        for tensor in self.tensors:
            tensor[target].copy_(tensor[source])
