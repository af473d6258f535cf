"""The two MLPs: the clamped gated unit, and the mixture of such experts behind a sigmoid router.

Legend: T packed rows, h hidden size, I intermediate size, E experts, k experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from longsight.ops import Backend, PackedExperts, PackedLinear


@dataclass(frozen=True)
class GatedMlp:
    """down(swiglu(gate_up(x))); gate_up is [gate | up], [2I, h]."""

    gate_up: PackedLinear
    down: PackedLinear
    alpha: float
    limit: float

    def __call__(self, x: Tensor, backend: Backend) -> Tensor:
        """[T, h] -> [T, h]."""
        return backend.linear(backend.swiglu(backend.linear(x, self.gate_up), self.alpha, self.limit), self.down)


@dataclass(frozen=True)
class Router:
    """Chooses experts and weighs them, in fp32 whatever dtype the model runs in. weight [E, h], bias fp32 [E].

    The bias takes part in the choice only; the weights are the chosen sigmoids over their sum, times `scale`.
    """

    weight: PackedLinear
    bias: Tensor
    topk: int
    scale: float

    def __call__(self, x: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
        """[T, h] -> expert ids int64 [T, k], weights fp32 [T, k]."""
        return backend.route(x, self.weight, self.bias, self.topk, self.scale)


@dataclass(frozen=True)
class MixtureOfExperts:
    """The routed experts' weighted sum plus the shared expert, which every token takes unweighted."""

    router: Router
    experts: PackedExperts
    shared: GatedMlp

    def __call__(self, x: Tensor, backend: Backend) -> Tensor:
        """[T, h] -> fp32 [T, h]."""
        ids, weights = self.router(x, backend)
        routed = backend.moe(x, ids, weights, self.experts, self.shared.alpha, self.shared.limit)
        return backend.add(routed, self.shared(x, backend))
