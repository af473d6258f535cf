"""The two kinds of weight that every part of the network is made of: matrices and Gemma norms, both kept in fp32.

The dtype of the activations decides the precision: a matrix is rounded to it where it is used and its gradient returns
in fp32; a norm computes in fp32 and rounds its result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longsight.ops import reference


class Linear(nn.Linear):
    """x [..., in] -> [..., out] in x's dtype; weight fp32 [out, in], no bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RmsNorm(nn.Module):
    """Gemma RMSNorm: x * rsqrt(mean(x^2) + eps) * (1 + weight); weight fp32 [width], zero at the start."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Over the last dimension, in x's dtype."""
        return reference.rms_norm(x, self.weight, self.eps)


class HeadNorm(nn.Module):
    """The same norm over each head, then RoPE on its first R channels; weight fp32 [width]."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(width)), eps

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [T, H * width] -> [T, H, width] in x's dtype; cos, sin fp32 [T, R/2]."""
        heads = x.unflatten(-1, (-1, self.weight.shape[0]))
        return reference.norm_rope(heads, self.weight, cos, sin, self.eps)
