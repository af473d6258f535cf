"""Which backend runs, and why. Chosen once, by name or automatically, and logged; nothing falls back in silence."""

from __future__ import annotations

import importlib
import logging
import os
from typing import Protocol, cast

import torch
from torch import Tensor

from longsight.ops.batch import Batch
from longsight.ops.errors import BackendUnavailableError
from longsight.ops.layout import LayerPages
from longsight.ops.memory import reuse_freed_memory
from longsight.ops.weights import PackedExperts, PackedLinear

log = logging.getLogger("longsight")
NAMES = ("cpu", "reference")


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
    if name == "reference":
        return None
    if name == "cpu":
        from longsight.ops import kernels

        return kernels.unavailable_reason()
    return f"unknown backend {name!r}; known: {', '.join(NAMES)}"


def choose(name: str | None = None) -> tuple[Backend, str]:
    """The backend to use and the reason.

    `name` (or the environment's LONGSIGHT_BACKEND) asks for one and raises BackendUnavailableError if it cannot run.
    Without a name the fastest that can run is taken; a fall to the reference is logged as a warning with its cause.
    """
    asked = name or os.environ.get("LONGSIGHT_BACKEND")
    if asked:
        problem = supports(asked)
        if problem:
            raise BackendUnavailableError(f"backend {asked!r} cannot run: {problem}")
        return _load(asked), "asked for by name"
    problem = supports("cpu")
    if problem is None:
        from longsight.ops import kernels

        reason = f"compiled CPU kernels, {kernels.isa()}"
        log.debug("backend cpu: %s", reason)
        return _load("cpu"), reason
    reason = f"CPU kernels are unavailable ({problem}); the plain PyTorch reference is exact but very slow"
    log.warning("backend reference: %s", reason)
    return _load("reference"), reason


def _load(name: str) -> Backend:
    reuse_freed_memory()
    return cast(Backend, importlib.import_module(f"longsight.ops.{name}"))
