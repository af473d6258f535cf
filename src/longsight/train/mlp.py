"""The two MLPs with gradients: the clamped gated unit, and the mixture of such experts behind a sigmoid router.

Legend: T packed rows, h hidden size, I intermediate size, E experts, k experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longsight.model import ModelConfig
from longsight.ops import reference
from longsight.train.layers import Linear


class GatedMlp(nn.Module):
    """down((clamp(up) + 1) * g * sigmoid(alpha * g)), g = min(gate, limit): the dense MLP and the shared expert."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        h = config.hidden_size
        self.gate_proj, self.up_proj, self.down_proj = Linear(h, width), Linear(h, width), Linear(width, h)
        self.alpha, self.limit = config.swiglu_alpha, config.swiglu_limit

    def forward(self, x: Tensor) -> Tensor:
        """[T, h] -> [T, h]."""
        gate_up = torch.cat((self.gate_proj(x), self.up_proj(x)), -1)
        return self.down_proj(reference.swiglu(gate_up, self.alpha, self.limit))  # type: ignore[no-any-return]


class Expert(nn.Module):
    """One routed expert under its published names: w1 gate, w3 up, w2 down."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        h, width = config.hidden_size, config.intermediate_size
        self.w1, self.w3, self.w2 = Linear(h, width), Linear(h, width), Linear(width, h)
        self.alpha, self.limit = config.swiglu_alpha, config.swiglu_limit

    def forward(self, x: Tensor) -> Tensor:
        """[n, h] -> [n, h]; n may be 0, which gives the weights a gradient of zeros."""
        gate_up = torch.cat((self.w1(x), self.w3(x)), -1)
        return self.w2(reference.swiglu(gate_up, self.alpha, self.limit))  # type: ignore[no-any-return]


class MixtureOfExperts(nn.Module):
    """scale * sum of the chosen experts by weight, plus the shared expert. No token is ever dropped.

    The choice, the k largest of sigmoid + bias, has no gradient; the weights, the chosen sigmoids over their sum, have
    one. The router is fp32 whatever dtype the rows have.
    """

    e_score_correction_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Linear(config.hidden_size, config.num_experts)
        self.register_buffer("e_score_correction_bias", torch.zeros(config.num_experts))
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.num_experts))
        self.shared_experts = GatedMlp(config, config.shared_intermediate_size)
        self.topk, self.scale = config.experts_per_token, config.routed_scaling_factor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[T, h] -> fp32 [T, h], and how many rows each expert took, int64 [E]."""
        ids, weights = self.route(x)
        load = ids.flatten().bincount(minlength=len(self.experts))
        # Every index below occurs once, so that the backward pass adds nothing in an order of its own.
        order = ids.flatten().argsort(stable=True)
        copies = x[:, None].expand(-1, self.topk, -1).flatten(0, 1)
        parts = copies.index_select(0, order).split(load.tolist())
        outputs = [expert(part) for expert, part in zip(self.experts, parts, strict=True)]
        routed = torch.cat(outputs).index_select(0, order.argsort()).unflatten(0, ids.shape)
        return (routed.float() * weights[..., None]).sum(1) + self.shared_experts(x).float(), load

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, h] -> expert ids int64, ascending, and weights fp32, both [T, k]."""
        # By way of fp64 for the same rounding in every row (see ops/reference.py).
        scores = self.gate(x.float()).double().sigmoid().float()
        biased = scores.detach() + self.e_score_correction_bias
        ids = biased.sort(dim=-1, descending=True, stable=True).indices[:, : self.topk].sort(-1).values
        weights = scores.gather(1, ids)
        return ids, weights * (self.scale / weights.sum(-1, keepdim=True))

    @torch.no_grad()
    def balance(self, load: Tensor, rate: float) -> None:
        """Raise the bias of experts that took fewer rows than the mean by `rate`, lower the others': load [E].

        Auxiliary-loss-free balancing, arXiv:2408.15664: it changes who is chosen, never what a choice weighs.
        """
        missing = load.float().mean() - load.float()
        self.e_score_correction_bias += rate * missing.sign().to(self.e_score_correction_bias.device)
