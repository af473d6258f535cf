"""Which training backend runs, and why: by name or the fastest that can run, with nothing falling back in silence."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from typing import Protocol, cast

from torch import Tensor

from longsight.ops import kernels
from longsight.ops.errors import BackendUnavailableError
from longsight.ops.memory import bound_shape_caches, reuse_freed_memory
from longsight.ops.training.documents import Documents

log = logging.getLogger("longsight")
NAMES = ("cpu", "reference")


class TrainingBackend(Protocol):
    """The operators with gradients, one signature on every backend; ops/training/reference.py documents each."""

    NAME: str

    def select_blocks(
        self,
        index_q: Tensor,
        index_k: Tensor,
        docs: Documents,
        *,
        block_size: int,
        topk: int,
        local_blocks: int = 1,
        init_blocks: int = 0,
    ) -> Tensor: ...
    def sparse_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ids: Tensor,
        docs: Documents,
        *,
        block_size: int,
        scale: float | None = None,
    ) -> tuple[Tensor, Tensor]: ...
    def dense_attention(
        self, q: Tensor, k: Tensor, v: Tensor, docs: Documents, *, scale: float | None = None
    ) -> tuple[Tensor, Tensor]: ...
    def sparse_kl(
        self,
        index_q: Tensor,
        index_k: Tensor,
        q: Tensor,
        k: Tensor,
        lse: Tensor,
        ids: Tensor,
        docs: Documents,
        *,
        block_size: int,
        scale: float | None = None,
        weight: Tensor | None = None,
    ) -> Tensor: ...
    def dense_kl(
        self,
        index_q: Tensor,
        index_k: Tensor,
        q: Tensor,
        k: Tensor,
        lse: Tensor,
        docs: Documents,
        *,
        scale: float | None = None,
        weight: Tensor | None = None,
    ) -> Tensor: ...
    def captured_mass(self, lse_sparse: Tensor, lse_dense: Tensor, groups: int) -> Tensor: ...


def supports(name: str) -> str | None:
    """None if training backend `name` can run here, else the reason why not."""
    if name == "reference":
        return None
    if name == "cpu":
        if importlib.util.find_spec("longsight.ops.training.cpu") is None:
            return "this version has no CPU kernels for training"
        return kernels.unavailable_reason()
    return f"unknown training backend {name!r}; known: {', '.join(NAMES)}"


def choose(name: str | None = None) -> tuple[TrainingBackend, str]:
    """The training backend to use and the reason.

    `name` (or the environment's LONGSIGHT_BACKEND) asks for one and raises BackendUnavailableError if it cannot run.
    Without a name the fastest that can run is taken; a fall to the reference is logged as a warning with its cause.
    """
    asked = name or os.environ.get("LONGSIGHT_BACKEND")
    if asked:
        problem = supports(asked)
        if problem:
            raise BackendUnavailableError(f"training backend {asked!r} cannot run: {problem}")
        return _load(asked), "asked for by name"
    problem = supports("cpu")
    if problem is None:
        reason = f"compiled CPU kernels, {kernels.isa()}"
        log.debug("training backend cpu: %s", reason)
        return _load("cpu"), reason
    reason = f"CPU kernels are unavailable ({problem}); the plain PyTorch reference is exact but slow"
    log.warning("training backend reference: %s", reason)
    return _load("reference"), reason


def _load(name: str) -> TrainingBackend:
    reuse_freed_memory()
    bound_shape_caches()
    return cast(TrainingBackend, importlib.import_module(f"longsight.ops.training.{name}"))
