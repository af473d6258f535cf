"""Which backend runs, and why. Chosen once, by name or automatically, and logged; nothing falls back in silence."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor

from longsight.ops.batch import Batch
from longsight.ops.choice import NAMES, load, problem_of
from longsight.ops.layout import LayerPages
from longsight.ops.weights import PackedExperts, PackedLinear

__all__ = ["NAMES", "Backend", "choose", "supports"]
KIND = "backend"


class Backend(Protocol):
    """The operators, with one signature and one layout on every backend; ops/reference.py documents each."""

    NAME: str

    def screens(self, dtype: torch.dtype, tokens: int) -> bool: ...
    def append_kv(self, pages: LayerPages, batch: Batch, k: Tensor, v: Tensor, index_k: Tensor | None) -> None: ...
    def select_blocks(
        self,
        index_q: Tensor,
        pages: LayerPages,
        batch: Batch,
        *,
        topk: int,
        local_blocks: int = 1,
        init_blocks: int = 0,
    ) -> Tensor: ...
    def sparse_attention(
        self, q: Tensor, pages: LayerPages, batch: Batch, ids: Tensor, *, scale: float | None = None
    ) -> tuple[Tensor, Tensor]: ...
    def dense_attention(
        self, q: Tensor, pages: LayerPages, batch: Batch, *, scale: float | None = None
    ) -> tuple[Tensor, Tensor]: ...
    def linear(self, x: Tensor, weight: PackedLinear) -> Tensor: ...
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...
    def norm_rope(self, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor: ...
    def swiglu(self, gate_up: Tensor, alpha: float, limit: float) -> Tensor: ...
    def add(self, y: Tensor, x: Tensor) -> Tensor: ...
    def route(
        self, x: Tensor, weight: PackedLinear, bias: Tensor, topk: int, scale: float
    ) -> tuple[Tensor, Tensor]: ...
    def likeliest(self, logits: Tensor) -> tuple[Tensor, Tensor]: ...
    def moe(
        self, x: Tensor, expert_ids: Tensor, expert_weights: Tensor, experts: PackedExperts, alpha: float, limit: float
    ) -> Tensor: ...


def supports(name: str) -> str | None:
    """None if backend `name` can run here, else the reason why not."""
    return problem_of(name, KIND)


def choose(name: str | None = None) -> tuple[Backend, str]:
    """The backend to use and the reason; `choice.load` says how it is chosen and what it raises."""
    module, reason = load(name, "longsight.ops", KIND, "very slow")
    return cast(Backend, module), reason
