"""Muon, arranged for many small matrices and for any processor."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

BATCH_ELEMENTS = 1 << 25  # elements orthogonalised at one time: 128 MiB in fp32, and about three times that in copies


class Muon(torch.optim.Muon):
    """torch's Muon (its options, its state, adjust_lr_fn "original") with another orthogonalisation.

    Matrices of one shape, such as experts, go through Newton-Schulz together, and in fp32 on a CPU without bf16
    arithmetic, where torch's own bf16 is more than ten times slower.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step; a matrix without gradient stays as it is."""
        assert closure is None
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[tuple(sorted(parameter.shape))].append(parameter)
            for shape, parameters in shapes.items():
                count = max(1, BATCH_ELEMENTS // math.prod(shape))
                for first in range(0, len(parameters), count):
                    self._step(parameters[first : first + count], group)

    def _step(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Of matrices of one shape or its transpose."""
        wide = [_wide(_whole(self._momentum(parameter, group))) for parameter in parameters]
        stacked = torch.stack(wide)
        if stacked.device.type != "cpu" or _cpu_has_bf16():
            stacked = stacked.bfloat16()
        updates = orthogonalised(stacked, group["ns_coefficients"], group["ns_steps"], group["eps"])
        for parameter, update in zip(parameters, updates, strict=True):
            rows, columns = parameter.shape
            update = update.T if rows > columns else update
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(cut_like(update, parameter), alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))

    def _momentum(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        grad, state = parameter.grad, self.state[parameter]
        assert grad is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        buffer: Tensor = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        return grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer


def orthogonalised(matrices: Tensor, coefficients: Iterable[float], steps: int, eps: float) -> Tensor:
    """Each of [n, rows <= columns] with its singular values moved to about 1, by Newton-Schulz iterations."""
    a, b, c = coefficients
    x: Tensor = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


@cache
def _cpu_has_bf16() -> bool:
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch lacks it
    return bool(capabilities.get("avx512_bf16"))


def _wide(matrix: Tensor) -> Tensor:
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def _whole(tensor: Tensor) -> Tensor:
    """All of a matrix that may be cut among processes."""
    whole: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole


def cut_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, the same in every process, cut among them as the parameter is."""
    if not isinstance(parameter, DTensor):
        return whole
    mesh = parameter.device_mesh
    return DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim).redistribute(placements=parameter.placements)
