"""One decoder layer, and the RoPE tables that all layers share.

Legend: T packed rows, R rotary dim, h hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longsight.model.attention import Attention, Step
from longsight.model.moe import GatedMlp, MixtureOfExperts
from longsight.ops import LayerPages


def inverse_frequencies(theta: float, rotary_dim: int) -> Tensor:
    """theta^(-2i/R) for the pairs i < R/2, fp32 [R/2]."""
    return 1.0 / theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)


def rope_tables(positions: Tensor, inverse_frequency: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, fp32 [T, R/2], of int32 positions [T]."""
    angles = positions[:, None] * inverse_frequency
    return angles.cos(), angles.sin()


@dataclass(frozen=True)
class Kept:
    """The rows of a step whose logits are wanted (int64 [R]) and the step narrowed to them."""

    rows: Tensor
    step: Step


@dataclass(frozen=True)
class DecoderLayer:
    """h += attention(norm(h)); h += mlp(norm(h)). The norms are Gemma RMSNorms, [h]."""

    input_norm: Tensor
    attention: Attention
    post_norm: Tensor
    mlp: GatedMlp | MixtureOfExperts
    eps: float

    def __call__(self, h: Tensor, step: Step, pages: LayerPages, kept: Kept | None = None) -> Tensor:
        """h [T, h] -> [T, h], in place. With `kept`, only those rows go on once the page write is done: [R, h]."""
        backend = step.backend
        q, index_q = self.attention.project(backend.rms_norm(h, self.input_norm, self.eps), step, pages)
        if kept is not None:
            h, q, step = h[kept.rows], q[kept.rows], kept.step
            index_q = None if index_q is None else index_q[kept.rows]
        if h.shape[0] == 0:
            return h
        backend.add(h, self.attention.attend(q, index_q, step, pages))
        return backend.add(h, self.mlp(backend.rms_norm(h, self.post_norm, self.eps), backend))
