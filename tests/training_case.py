"""Random packed documents for the training operators, and the whole-matrix formulas to judge them by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longsight.ops.training import Documents

# empty, one token, below a block, whole blocks, off the grid, more than topk * block, empty at the end
LENGTHS = (0, 1, 7, 32, 0, 45, 150, 16, 0)


@dataclass
class Case:
    """Inputs of one call. spread: the standard deviation of the scaled scores; 0.04 is flat, 8 is peaked."""

    lengths: tuple[int, ...] = LENGTHS
    kv_heads: int = 2
    group: int = 4
    dim: int = 32
    index_dim: int = 16
    dtype: torch.dtype = torch.float32
    spread: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(self.seed)
        self.docs = Documents.of_lengths(self.lengths)
        rows = self.docs.rows

        def draw(*shape: int, by: float = 1.0) -> Tensor:
            return (torch.randn(rows, *shape, generator=g, dtype=torch.float64) * by).to(self.dtype).requires_grad_()

        self.q = draw(self.kv_heads * self.group, self.dim, by=self.spread)
        self.k, self.v = draw(self.kv_heads, self.dim), draw(self.kv_heads, self.dim)
        self.index_q = draw(self.kv_heads, self.index_dim, by=self.spread)
        self.index_k = draw(self.index_dim)
        self.dout = torch.randn(self.q.shape, generator=g, dtype=torch.float64).to(self.dtype)
        self.weight = torch.rand(rows, generator=g) / max(1, rows)

    @property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v

    @property
    def index(self) -> tuple[Tensor, Tensor]:
        return self.index_q, self.index_k

    def exact(self) -> Case:
        """The same numbers in fp64."""
        other = Case(self.lengths, self.kv_heads, self.group, self.dim, self.index_dim, torch.float64)
        for name in ("q", "k", "v", "index_q", "index_k"):
            setattr(other, name, getattr(self, name).detach().double().requires_grad_())
        other.dout, other.weight = self.dout.double(), self.weight.double()
        return other


def grads(output: Tensor, inputs: tuple[Tensor, ...], dout: Tensor | None = None) -> tuple[Tensor, ...]:
    """Gradients of output (weighted by dout) for inputs."""
    return torch.autograd.grad(output, inputs, dout)


def support_of(docs: Documents, groups: int, ids: Tensor | None, block_size: int) -> Tensor:
    """bool [T, H_kv, T]: what each row attends to; ids None means all it can see."""
    rows = torch.arange(docs.rows)
    document = torch.searchsorted(docs.cu_seqlens[1:].long(), rows, right=True)
    visible = (document[:, None] == document) & (rows[:, None] >= rows)
    if ids is None:
        return visible[:, None].expand(-1, groups, -1)
    blocks = docs.positions // block_size
    return visible[:, None] & (ids[..., None] == blocks).any(2)


def attention(case: Case, support: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """out [T, H_q, D], log-sum-exp [T, H_q] and probabilities [T, H_q, T]."""
    k, v, mask = (x.repeat_interleave(case.group, 1) for x in (case.k, case.v, support))
    scores = torch.einsum("thd,jhd->thj", case.q, k) * case.dim**-0.5
    scores = scores.masked_fill(~mask, -torch.inf)
    p = scores.softmax(-1)
    return torch.einsum("thj,jhd->thd", p, v), scores.logsumexp(-1), p


def divergence(case: Case, support: Tensor, weight: Tensor) -> Tensor:
    """sum_t weight * mean_r KL(mean of the heads' probabilities || softmax of the index scores)."""
    teacher = attention(case, support)[2].detach().unflatten(1, (case.kv_heads, -1)).mean(2)
    scores = torch.einsum("trd,jd->trj", case.index_q, case.index_k) * case.index_dim**-0.5
    student = scores.masked_fill(~support, -torch.inf).log_softmax(-1).masked_fill(~support, 0.0)
    gap: Tensor = (torch.xlogy(teacher, teacher) - teacher * student).sum(-1)  # [T, H_kv]
    return (weight[:, None] * gap).sum() / case.kv_heads


def assert_close(actual: Tensor, exact: Tensor, dtype: torch.dtype, absolute: float = 1e-30) -> None:
    """Within some roundings of dtype relative to the largest value, or within `absolute`. exact is fp64."""
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 1.5e-2}[dtype]
    assert actual.shape == exact.shape
    if actual.numel():
        exact = exact.detach()
        error, largest = float((actual.detach().double() - exact).abs().max()), float(exact.abs().max())
        assert error <= max(tolerance * largest, absolute), (
            f"error {error:.1e} of {largest:.1e}, {tolerance:.1e} allowed"
        )
