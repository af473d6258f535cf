"""The divergence of a few rows over every token: the dense one with no weight elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longsight.ops import UnsupportedError
from longsight.ops.training import choose
from longsight.ops.training import rows_kl as module
from longsight.ops.training.rows_kl import rows_kl
from training_case import Case, assert_close, grads

REFERENCE, _ = choose("reference")


def some_rows(case: Case, share: float = 0.3) -> Tensor:
    return (torch.rand(case.docs.rows, generator=torch.Generator().manual_seed(1)) < share).nonzero()[:, 0]


def of_rows(case: Case, rows: Tensor, **options: float) -> Tensor:
    index_q, q, weight = case.index_q[rows], case.q[rows], case.weight[rows]
    return rows_kl(index_q, case.index_k, q, case.k, rows, case.docs, weight=weight, **options)


@pytest.mark.parametrize("spread", [0.04, 8.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("tile", [1, 1 << 24])
def test_it_is_the_dense_divergence_of_those_rows(
    spread: float, dtype: torch.dtype, group: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SCORES", tile)
    case = Case(group=group, dtype=dtype, spread=spread)
    exact, rows = case.exact(), some_rows(case)
    assert 0 < rows.shape[0] < case.docs.rows
    weight = torch.zeros_like(exact.weight)
    weight[rows] = exact.weight[rows]
    _, lse = REFERENCE.dense_attention(*exact.qkv, exact.docs)
    wanted = REFERENCE.dense_kl(*exact.index, exact.q, exact.k, lse, exact.docs, weight=weight)
    kl = of_rows(case, rows)
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    assert kl.dtype == accumulated
    assert_close(kl, wanted, accumulated, absolute=1e-6)
    for actual, expected in zip(grads(kl, case.index), grads(wanted, exact.index), strict=True):
        assert_close(actual, expected, dtype)


def test_gradients_by_finite_differences() -> None:
    case = Case((0, 1, 3, 7, 0), 2, 2, dim=3, index_dim=2, dtype=torch.float64, spread=2.0)
    rows = torch.tensor([0, 2, 3, 9, 10])

    def diverge(index_q: Tensor, index_k: Tensor) -> Tensor:
        given = index_q[rows], index_k, case.q[rows], case.k, rows, case.docs
        return rows_kl(*given, weight=torch.linspace(0.1, 0.5, 5, dtype=torch.float64), scale=0.7)

    assert torch.autograd.gradcheck(diverge, case.index)


def test_the_teacher_learns_nothing_and_no_rows_are_nothing() -> None:
    case = Case(spread=2.0)
    kl = of_rows(case, some_rows(case))
    assert all(gradient is None for gradient in torch.autograd.grad(kl, (case.q, case.k), allow_unused=True))
    none = of_rows(case, torch.empty(0, dtype=torch.int64))
    assert float(none.detach()) == 0.0
    assert all(float(gradient.abs().max()) == 0.0 for gradient in grads(none, case.index))


@pytest.mark.parametrize("rows", [[3, 3], [4, 2], [-1, 2], [0, 251]])
def test_rows_that_are_not_there_are_refused(rows: list[int]) -> None:
    case = Case()
    assert case.docs.rows == 251
    with pytest.raises(UnsupportedError, match="rows must ascend strictly from 0 to 250"):
        rows_kl(
            case.index_q[:2], case.index_k, case.q[:2], case.k, torch.tensor(rows), case.docs, weight=case.weight[:2]
        )
    with pytest.raises(UnsupportedError, match=r"index_q must have shape \[3, 2, 16\]"):
        rows_kl(case.index_q[:2], case.index_k, case.q[:3], case.k, torch.arange(3), case.docs, weight=case.weight[:3])
    with pytest.raises(UnsupportedError, match=r"weight must have shape \[3\]"):
        rows_kl(case.index_q[:3], case.index_k, case.q[:3], case.k, torch.arange(3), case.docs, weight=case.weight)
