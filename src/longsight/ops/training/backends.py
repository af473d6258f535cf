"""Which training backend runs, and why: by name or the fastest that can run, with nothing falling back in silence."""

from __future__ import annotations

from typing import Protocol, cast

from torch import Tensor

from longsight.ops.choice import NAMES, load, problem_of
from longsight.ops.memory import bound_shape_caches
from longsight.ops.training.documents import Documents

__all__ = ["NAMES", "TrainingBackend", "choose", "supports"]
KIND = "training backend"


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
    return problem_of(name, KIND)


def choose(name: str | None = None) -> tuple[TrainingBackend, str]:
    """The training backend to use and the reason; `ops.choice.load` says how it is chosen and what it raises."""
    module, reason = load(name, "longsight.ops.training", KIND, "slow")
    bound_shape_caches()
    return cast(TrainingBackend, module), reason
