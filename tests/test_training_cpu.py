"""The compiled training operators on every instruction set against the reference in fp64, and their own promises."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from longsight.ops import UnsupportedError, kernels
from longsight.ops.training import Documents, choose
from longsight.ops.training.backends import TrainingBackend

REFERENCE, _ = choose("reference")
CPU, _ = choose("cpu")
# Largest difference over the largest value. bf16 inputs are compared with the fp64 reference on the very same inputs,
# so what is left is the rounding of probabilities, of their gradients and of the result.
LIMIT = {torch.float32: 1e-5, torch.bfloat16: 1.2e-2}
DTYPES = tuple(LIMIT)
LENGTHS = (1, 0, 150, 16, 47, 96, 33)


@pytest.fixture(params=kernels.usable_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """One instruction set; two threads, so that items wait for each other."""
    before, threads = kernels.isa(), torch.get_num_threads()
    kernels.use_isa(request.param)
    torch.set_num_threads(2)
    yield request.param
    torch.set_num_threads(threads)
    kernels.use_isa(before)


known: dict[object, Any] = {}


def once(key: object, compute: Callable[[], Any]) -> Any:
    """What `compute` returns, computed once for all instruction sets; on one thread, as its tiles are small."""
    if key not in known:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        known[key] = compute()
        torch.set_num_threads(threads)
    return known[key]


class Case:
    """Random inputs of one geometry. peak: how sharp attention is; 1 is nearly flat, 6 puts most on few keys."""

    def __init__(
        self,
        lengths: tuple[int, ...] = LENGTHS,
        *,
        block: int = 16,
        groups: int = 2,
        group: int = 4,
        dim: int = 32,
        index_dim: int = 16,
        topk: int = 3,
        dtype: torch.dtype = torch.float32,
        peak: float = 1.0,
        seed: int = 0,
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        self.key = (lengths, block, groups, group, dim, index_dim, topk, dtype, peak, seed)
        self.docs, self.block, self.topk = Documents.of_lengths(lengths), block, topk
        rows = self.docs.rows

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape, generator=g) * scale).to(dtype)

        self.q = draw(rows, groups * group, dim, scale=peak)
        self.k, self.v = draw(rows, groups, dim), draw(rows, groups, dim)
        self.index_q, self.index_k = draw(rows, groups, index_dim, scale=peak), draw(rows, index_dim)
        self.grad = draw(rows, groups * group, dim)
        self.weight = torch.rand(rows, generator=g)
        self.ids = once(
            ("ids", *self.key),
            lambda: REFERENCE.select_blocks(self.index_q, self.index_k, self.docs, block_size=block, topk=topk),
        ).clone()

    def results(
        self, ops: TrainingBackend, dtype: torch.dtype | None = None, *, sparse: bool = True
    ) -> dict[str, Tensor]:
        """Outputs and gradients of attention and of the divergence, on the inputs cast to `dtype`."""
        q, k, v, index_q, index_k = (
            x.to(dtype or x.dtype).clone().requires_grad_()
            for x in (self.q, self.k, self.v, self.index_q, self.index_k)
        )
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        weight = self.weight.to(exact)
        if sparse:
            out, lse = ops.sparse_attention(q, k, v, self.ids, self.docs, block_size=self.block)
            kl = ops.sparse_kl(index_q, index_k, q, k, lse, self.ids, self.docs, block_size=self.block, weight=weight)
        else:
            out, lse = ops.dense_attention(q, k, v, self.docs)
            kl = ops.dense_kl(index_q, index_k, q, k, lse, self.docs, weight=weight)
        out.backward(self.grad.to(out.dtype))
        (3 * kl).backward()
        found = {"out": out, "lse": lse, "kl": kl, "dq": q.grad, "dk": k.grad, "dv": v.grad}
        found |= {"dindex_q": index_q.grad, "dindex_k": index_k.grad}
        assert not lse.requires_grad
        return {name: x.detach() for name, x in found.items() if x is not None}

    def agree(self, *, sparse: bool = True) -> None:
        got = self.results(CPU, sparse=sparse)
        want = once(
            (sparse, self.ids.numpy().tobytes(), *self.key),
            lambda: self.results(REFERENCE, torch.float64, sparse=sparse),
        )
        assert got.keys() == want.keys()
        assert len(got) == 8
        for name, x in got.items():
            dtype = torch.float32 if name in ("lse", "kl") else self.q.dtype
            assert x.dtype == dtype
            limit = LIMIT[dtype]
            finite = want[name].isfinite()
            assert torch.equal(x.isfinite(), finite), name
            scale = want[name][finite].abs().max()
            error = (x.double() - want[name])[finite].abs().max() / scale
            assert error <= limit, f"{name}: {error:.2e} of its largest value, over {limit:.2e}"


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("peak", [1.0, 6.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outputs_and_gradients_are_those_of_the_reference(
    isa: str, dtype: torch.dtype, peak: float, sparse: bool
) -> None:
    Case(dtype=dtype, peak=peak).agree(sparse=sparse)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("block", "groups", "group", "dim", "index_dim", "topk"),
    [
        (128, 2, 16, 128, 128, 2),
        (64, 1, 1, 64, 128, 3),
        (32, 3, 5, 80, 48, 4),
        (48, 1, 4, 128, 64, 1),
        (16, 2, 64, 16, 16, 2),
        (80, 2, 3, 40, 24, 2),
    ],
)
def test_every_geometry(
    isa: str, dtype: torch.dtype, block: int, groups: int, group: int, dim: int, index_dim: int, topk: int
) -> None:
    lengths = (topk * block + 1, topk * block) if block == 16 else (3, topk * block + 1)
    case = Case(
        lengths, block=block, groups=groups, group=group, dim=dim, index_dim=index_dim, topk=topk, dtype=dtype, peak=2.0
    )
    case.agree()
    if block == 64:
        case.agree(sparse=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("topk", "local", "init"), [(3, 1, 0), (4, 2, 1), (20, 1, 0), (1, 1, 0)])
def test_selection_is_that_of_the_reference(isa: str, dtype: torch.dtype, topk: int, local: int, init: int) -> None:
    # Small integers: every score is exact in any order of summation, and ties are frequent.
    case = Case()
    index_q, index_k = (x.mul(2).round().clamp(-2, 2).to(dtype) for x in (case.index_q, case.index_k))
    kwargs = {"block_size": case.block, "topk": topk, "local_blocks": local, "init_blocks": init}
    expected = REFERENCE.select_blocks(index_q, index_k, case.docs, **kwargs)
    assert torch.equal(CPU.select_blocks(index_q, index_k, case.docs, **kwargs), expected)


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_same_bits_on_every_run_and_for_any_number_of_threads(sparse: bool) -> None:
    # 2,100 tokens of 16 heads are three chunks a head: their shares of a key's gradient are added in turns.
    case = Case((2100, 70), group=16, dim=16, block=32, topk=4, dtype=torch.bfloat16)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = case.results(CPU, sparse=sparse)
        for count in (2, 2, 5):
            torch.set_num_threads(count)
            again = case.results(CPU, sparse=sparse)
            assert all(torch.equal(first[name], again[name]) for name in first)
    finally:
        torch.set_num_threads(threads)
    if sparse:
        case.agree()


def test_chunks_of_a_document_add_up(isa: str) -> None:
    Case((1100,), groups=1, group=16, dim=16, index_dim=16, block=32, topk=3, peak=2.0).agree()


def test_blocks_that_nobody_chose_get_zero(isa: str) -> None:
    case = Case((400,), topk=1)
    # Every row attends to block 0 or to its own; rows 64..79 to block 0 only, so nobody chose block 4.
    case.ids[64:80] = 0
    got = case.results(CPU)
    for name in ("dk", "dv", "dindex_k"):
        assert not got[name][64:80].any(), name
        assert got[name][80:].abs().amax(tuple(range(1, got[name].ndim))).min() > 0, name
    case.agree()


def test_rows_without_a_choice(isa: str) -> None:
    case = Case((60, 20))
    case.ids[10:50] = -1
    got = case.results(CPU)
    assert not any(got[name][10:50].any() for name in ("out", "dq", "dindex_q"))
    assert (got["lse"][10:50] == -torch.inf).all()
    case.agree()


def test_no_documents_and_empty_ones() -> None:
    for lengths in ((), (0,), (0, 0)):
        got = Case(lengths).results(CPU)
        assert float(got["kl"]) == 0
        assert got["dq"].shape == got["out"].shape == (0, 8, 32)


def test_divergence_without_gradients_is_the_same_number() -> None:
    case = Case(dtype=torch.bfloat16)
    _, lse = CPU.sparse_attention(case.q, case.k, case.v, case.ids, case.docs, block_size=case.block)
    args = (case.q, case.k, lse, case.ids, case.docs)
    plain = CPU.sparse_kl(case.index_q, case.index_k, *args, block_size=case.block)
    with_gradients = CPU.sparse_kl(case.index_q.requires_grad_(), case.index_k, *args, block_size=case.block)
    assert (plain.requires_grad, with_gradients.requires_grad) == (False, True)
    assert torch.equal(plain, with_gradients)


def test_divergence_of_equal_distributions_is_zero() -> None:
    case = Case((90,), groups=1, group=1, dim=32, index_dim=32)
    _, lse = CPU.dense_attention(case.q, case.k, case.v, case.docs)
    index_q, index_k = case.q.clone().requires_grad_(), case.k[:, 0].clone().requires_grad_()
    kl = CPU.dense_kl(index_q, index_k, case.q, case.k, lse, case.docs)
    kl.backward()
    assert abs(float(kl.detach())) < 1e-6
    assert index_q.grad is not None
    assert index_q.grad.abs().max() < 1e-7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.ids.__setitem__((5, 0), torch.tensor([0, 0, -1], dtype=torch.int32)), "ascend"),
        (lambda c: c.ids.__setitem__((5, 0, 0), 99), "ascend"),
        (lambda c: setattr(c, "ids", c.ids.long()), "ids is torch.int64"),
        (lambda c: setattr(c, "ids", c.ids[:, :1]), "ids must have shape"),
        (lambda c: setattr(c, "block", 24), "block_size 24"),
        (lambda c: setattr(c, "v", c.v[:, :1]), "shape of k"),
    ],
)
def test_bad_arguments_are_refused(change: Callable[[Case], None], said: str) -> None:
    case = Case((40,))
    change(case)
    with pytest.raises(UnsupportedError, match=said):
        case.results(CPU)


def test_kl_refuses_bad_ids_itself() -> None:
    case = Case((40,))
    _, lse = CPU.sparse_attention(case.q, case.k, case.v, case.ids, case.docs, block_size=case.block)
    case.ids[3, 1] = torch.tensor([1, 0, -1], dtype=torch.int32)
    with pytest.raises(UnsupportedError, match="ascend"):
        CPU.sparse_kl(case.index_q, case.index_k, case.q, case.k, lse, case.ids, case.docs, block_size=case.block)


def test_workspace_grows_with_tokens_not_with_their_square() -> None:
    """Peak memory of a fresh process: 16K tokens against scores of 1 GiB a head; the bound is stated in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {__name__} as t; t.report_peak()"],
        capture_output=True,
        text=True,
        cwd=__file__.rsplit("/", 1)[0],
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after - before < 64


def report_peak() -> None:
    """Print the peak in MiB before and after forward, backward and divergence of 16,384 tokens."""
    torch.set_num_threads(1)
    case = Case((1 << 14,), groups=1, group=2, dim=16, index_dim=16, block=64, topk=2, dtype=torch.bfloat16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    case.results(CPU)
    case.results(CPU, sparse=False)
    print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
