"""The training operators against autograd of the full-matrix formulas, over packed documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longsight.ops import Batch, LayerPages, PageLayout, UnsupportedError
from longsight.ops import reference as paged
from longsight.ops.errors import BackendUnavailableError
from longsight.ops.training import Documents, TrainingBackend, choose, supports
from longsight.ops.training.backends import NAMES
from longsight.ops.training.tiles import TILE
from training_case import LENGTHS, Case, assert_close, attention, divergence, grads, support_of

REFERENCE, _ = choose("reference")
BLOCK, TOPK = 16, 3
SPREADS = {"flat": 0.04, "peaked": 8.0}


@pytest.fixture(params=[name for name in NAMES if supports(name) is None])
def backend(request: pytest.FixtureRequest) -> TrainingBackend:
    return choose(request.param)[0]


def chosen(case: Case, block: int = BLOCK, topk: int = TOPK, local_blocks: int = 1, init_blocks: int = 0) -> Tensor:
    """The reference's choice for the case's index branch."""
    options = {"topk": topk, "local_blocks": local_blocks, "init_blocks": init_blocks}
    return REFERENCE.select_blocks(case.index_q, case.index_k, case.docs, block_size=block, **options)


class Run:
    """One forward and backward pass of attention and of its divergence: results and gradients by name."""

    def __init__(self, backend: TrainingBackend, case: Case, ids: Tensor | None, block: int = BLOCK) -> None:
        if ids is None:
            self.out, self.lse = backend.dense_attention(*case.qkv, case.docs)
            self.kl = backend.dense_kl(*case.index, case.q, case.k, self.lse, case.docs, weight=case.weight)
        else:
            self.out, self.lse = backend.sparse_attention(*case.qkv, ids, case.docs, block_size=block)
            self.kl = backend.sparse_kl(
                *case.index, case.q, case.k, self.lse, ids, case.docs, block_size=block, weight=case.weight
            )
        self.dq, self.dk, self.dv = grads(self.out, case.qkv, case.dout)
        self.dindex_q, self.dindex_k = grads(self.kl, case.index)
        self.rows = {name: getattr(self, name) for name in ("out", "lse", "dq", "dk", "dv", "dindex_q", "dindex_k")}


@pytest.mark.parametrize("mode", ["sparse", "dense"])
@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("group", [1, 4])
def test_results_and_gradients_are_those_of_the_whole_matrix(
    backend: TrainingBackend, mode: str, spread: float, dtype: torch.dtype, group: int
) -> None:
    case = Case(group=group, dtype=dtype, spread=spread)
    ids = chosen(case, local_blocks=2, topk=4, init_blocks=1) if mode == "sparse" else None
    run, exact = Run(backend, case, ids), case.exact()
    support = support_of(case.docs, case.kv_heads, ids, BLOCK)
    out, lse, _ = attention(exact, support)
    kl = divergence(exact, support, exact.weight)
    assert (run.out.dtype, run.lse.dtype, run.kl.dtype) == (dtype, torch.float32, torch.float32)
    assert_close(run.lse, lse, torch.float32)
    assert_close(run.out, out, dtype)
    # Where both are flat its terms nearly cancel; they are as large as log-sum-exps, of which fp32 keeps this much.
    assert_close(run.kl, kl, torch.float32, absolute=1e-6)
    for actual, wanted in zip((run.dq, run.dk, run.dv), grads(out, exact.qkv, exact.dout), strict=True):
        assert_close(actual, wanted, dtype)
    for actual, wanted in zip((run.dindex_q, run.dindex_k), grads(kl, exact.index), strict=True):
        assert_close(actual, wanted, dtype)


@pytest.mark.parametrize(("group", "local", "init", "topk"), [(1, 1, 0, 1), (4, 2, 1, 3), (4, 1, 0, 2), (1, 2, 0, 9)])
@pytest.mark.parametrize("mode", ["sparse", "dense"])
def test_gradients_by_finite_differences(mode: str, group: int, local: int, init: int, topk: int) -> None:
    case = Case((0, 1, 3, 7, 0), 3 - min(group, 2), group, dim=3, index_dim=2, dtype=torch.float64, spread=2.0)
    ids = chosen(case, 2, topk, local_blocks=local, init_blocks=init)
    lse = Run(REFERENCE, case, ids if mode == "sparse" else None, 2).lse

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if mode == "dense":
            return REFERENCE.dense_attention(q, k, v, case.docs, scale=0.7)[0]
        return REFERENCE.sparse_attention(q, k, v, ids, case.docs, block_size=2, scale=0.7)[0]

    def diverge(index_q: Tensor, index_k: Tensor) -> Tensor:
        if mode == "dense":
            return REFERENCE.dense_kl(index_q, index_k, case.q, case.k, lse, case.docs)
        return REFERENCE.sparse_kl(index_q, index_k, case.q, case.k, lse, ids, case.docs, block_size=2)

    assert torch.autograd.gradcheck(attend, case.qkv)
    assert torch.autograd.gradcheck(diverge, case.index)


@pytest.mark.parametrize("mode", ["sparse", "dense"])
def test_the_teacher_is_a_mean_of_probabilities_and_learns_nothing(backend: TrainingBackend, mode: str) -> None:
    case = Case(spread=8.0)
    ids = chosen(case) if mode == "sparse" else None
    lse = Run(backend, case, ids).lse.detach().requires_grad_()
    if ids is None:
        kl = backend.dense_kl(*case.index, case.q, case.k, lse, case.docs)
    else:
        kl = backend.sparse_kl(*case.index, case.q, case.k, lse, ids, case.docs, block_size=BLOCK)
    teacher = torch.autograd.grad(kl, (case.q, case.k, lse), retain_graph=True, allow_unused=True)
    assert all(gradient is None for gradient in teacher)
    # The heads of a group disagree here, so a teacher of mean logits, or of summed probabilities, is another number.
    exact, support = case.exact(), support_of(case.docs, case.kv_heads, ids, BLOCK)
    even = torch.full((case.docs.rows,), 1 / case.docs.rows)
    assert_close(kl, divergence(exact, support, even), torch.float32)
    merged = case.exact()
    merged.q, merged.group = merged.q.unflatten(1, (case.kv_heads, -1)).mean(2), 1
    assert float(divergence(merged, support, even).detach()) != pytest.approx(float(kl.detach()), rel=0.01)


def test_a_teacher_of_the_student_diverges_nowhere(backend: TrainingBackend) -> None:
    case = Case(kv_heads=1, group=1, dim=16, index_dim=16, spread=4.0)
    case.index_q, case.index_k = case.q, case.k[:, 0].detach().requires_grad_()
    for ids in (chosen(case), None):
        run = Run(backend, case, ids)
        assert abs(float(run.kl.detach())) < 1e-6
        assert float(run.dindex_q.abs().max()) < 1e-8


@pytest.mark.parametrize(("topk", "local", "init"), [(1, 1, 0), (3, 1, 0), (4, 2, 1), (2, 1, 1), (3, 3, 0), (20, 1, 0)])
@pytest.mark.parametrize("integers", [True, False])
def test_the_choice_is_that_of_paged_inference(
    backend: TrainingBackend, topk: int, local: int, init: int, integers: bool
) -> None:
    case = Case((*LENGTHS, topk * BLOCK, topk * BLOCK + 1, 333))
    index_q, index_k = (x.detach().mul(1.5).round() if integers else x.detach() for x in case.index)
    options = {"topk": topk, "local_blocks": local, "init_blocks": init}
    ids = backend.select_blocks(index_q, index_k, case.docs, block_size=BLOCK, **options)
    assert (ids.dtype, ids.shape) == (torch.int32, (case.docs.rows, case.kv_heads, topk))
    for first, end in case.docs.bounds:
        if first == end:
            continue
        count = -(-(end - first) // BLOCK)
        pages = LayerPages.allocate(PageLayout(BLOCK, case.kv_heads, case.dim, case.index_dim, torch.float32), count)
        batch = Batch.build([(end - first, end - first, torch.randperm(count).tolist())])
        rows = slice(first, end)
        paged.append_kv(pages, batch, case.k[rows].detach(), case.v[rows].detach(), index_k[rows])
        assert torch.equal(ids[rows], paged.select_blocks(index_q[rows], pages, batch, **options))


def test_the_choice_carries_no_gradient_and_refuses_nan() -> None:
    case = Case()
    assert not chosen(case).requires_grad
    case.index_k = case.index_k.detach().index_fill(0, torch.tensor([60]), torch.nan)
    with pytest.raises(UnsupportedError, match="NaN index score"):
        chosen(case)


def test_nan_stays_in_its_document_and_is_seen_in_the_divergence(backend: TrainingBackend) -> None:
    case = Case()
    ids = backend.select_blocks(*case.index, case.docs, block_size=BLOCK, topk=TOPK)
    first, end = case.docs.bounds[5]
    index_k = case.index_k.detach().index_fill(0, torch.arange(first, end), torch.nan)
    _, lse = backend.dense_attention(*case.qkv, case.docs)
    assert backend.dense_kl(case.index_q, index_k, case.q, case.k, lse, case.docs).isnan()
    if backend.NAME == "reference":
        return
    sick = backend.select_blocks(case.index_q, index_k, case.docs, block_size=BLOCK, topk=TOPK)
    assert torch.equal(torch.cat((sick[:first], sick[end:])), torch.cat((ids[:first], ids[end:])))
    # What the document's own rows choose is unspecified, but it is a choice that attention accepts.
    assert backend.sparse_attention(*case.qkv, sick, case.docs, block_size=BLOCK)[0].isfinite().all()


def test_zero_scores_of_either_sign_are_a_tie(backend: TrainingBackend) -> None:
    docs = Documents.of_lengths([5 * BLOCK])
    index_q, index_k = torch.ones(docs.rows, 1, 16), torch.zeros(docs.rows, 16)
    index_k[:BLOCK] = -0.0
    ids = backend.select_blocks(index_q, index_k, docs, block_size=BLOCK, topk=3)
    assert ids[-1, 0].tolist() == [0, 1, 4]


def test_sparse_attention_with_every_block_is_dense_attention(backend: TrainingBackend) -> None:
    case = Case(spread=3.0)
    sparse, dense = Run(backend, case, chosen(case, topk=10)), Run(backend, case, None)
    for name, rows in sparse.rows.items():
        assert_close(rows, dense.rows[name].double(), torch.float32)
    assert_close(sparse.kl, dense.kl.detach().double(), torch.float32)
    assert_close(backend.captured_mass(sparse.lse, dense.lse, 2), torch.ones(case.docs.rows, 2).double(), torch.float32)


def test_captured_mass_is_dense_probability_inside_the_choice(backend: TrainingBackend) -> None:
    case = Case(spread=2.0)
    ids = chosen(case)
    mass = backend.captured_mass(Run(backend, case, ids).lse, Run(backend, case, None).lse, case.kv_heads)
    p = attention(case.exact(), support_of(case.docs, case.kv_heads, None, BLOCK))[2].detach()
    inside = support_of(case.docs, case.kv_heads, ids, BLOCK).repeat_interleave(case.group, 1)
    wanted = (p * inside).sum(-1).unflatten(1, (case.kv_heads, -1)).mean(2)
    assert_close(mass, wanted, torch.float32)
    assert float(mass.min()) < 0.9


def test_unchosen_blocks_get_exactly_zero(backend: TrainingBackend) -> None:
    case = Case((20, 100))
    ids = chosen(case, topk=2)
    ids[120 - 4 :] = torch.tensor([1, 6], dtype=torch.int32)  # block 6 of the second document: its last 4 rows
    case.dout[: 120 - 4] = 0
    case.weight[: 120 - 4] = 0
    run = Run(backend, case, ids)
    learns = torch.zeros(120, dtype=torch.bool)
    learns[20 + BLOCK : 20 + 2 * BLOCK] = learns[120 - 4 :] = True
    for gradient in (run.dk, run.dv, run.dindex_k):
        assert torch.equal(gradient.flatten(1).abs().amax(1) > 0, learns)


@pytest.mark.parametrize("mode", ["sparse", "dense"])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e30])
def test_documents_do_not_see_each_other(backend: TrainingBackend, mode: str, poison: float) -> None:
    case = Case(spread=2.0)
    ids = chosen(case) if mode == "sparse" else None
    clean = Run(backend, case, ids)
    for document in (3, 5):
        sick = Case(spread=2.0)
        rows = torch.zeros(case.docs.rows, dtype=torch.bool)
        rows[slice(*case.docs.bounds[document])] = True
        for name in ("q", "k", "v", "index_q", "index_k", "dout"):
            setattr(
                sick,
                name,
                getattr(sick, name).detach().masked_fill(rows.view(-1, *[1] * (2 - (name == "index_k"))), poison),
            )
            if name != "dout":
                getattr(sick, name).requires_grad_()
        run = Run(backend, sick, ids)
        for name, wanted in clean.rows.items():
            assert torch.equal(run.rows[name][~rows], wanted[~rows]), name
        if poison == 1e30 and ids is not None:
            assert torch.equal(
                backend.select_blocks(*sick.index, case.docs, block_size=BLOCK, topk=TOPK)[~rows], ids[~rows]
            )


@pytest.mark.parametrize("mode", ["sparse", "dense"])
def test_order_of_documents_does_not_matter(backend: TrainingBackend, mode: str) -> None:
    case = Case(spread=2.0)
    order = torch.randperm(len(LENGTHS), generator=torch.Generator().manual_seed(1)).tolist()
    rows = torch.cat([torch.arange(*case.docs.bounds[i]) for i in order])
    moved = Case(tuple(LENGTHS[i] for i in order))
    for name in ("q", "k", "v", "index_q", "index_k"):
        setattr(moved, name, getattr(case, name).detach()[rows].requires_grad_())
    moved.dout, moved.weight = case.dout[rows], case.weight[rows]
    ids = chosen(case) if mode == "sparse" else None
    if ids is not None:
        there = backend.select_blocks(*moved.index, moved.docs, block_size=BLOCK, topk=TOPK)
        assert torch.equal(there, ids[rows])
    one, other = Run(backend, case, ids), Run(backend, moved, None if ids is None else ids[rows])
    for name, wanted in one.rows.items():
        assert torch.equal(other.rows[name], wanted[rows]), name
    assert_close(other.kl, one.kl.detach().double(), torch.float32)


@pytest.mark.parametrize("mode", ["sparse", "dense"])
def test_every_run_gives_the_same_bits(backend: TrainingBackend, mode: str) -> None:
    case = Case((500, 1, 100), spread=2.0)
    ids = chosen(case) if mode == "sparse" else None
    threads, runs = torch.get_num_threads(), []
    try:
        # torch's matmul, the reference's, may sum in another order for another number of threads.
        for count in (2, 2) if backend.NAME == "reference" else (2, 1, 2, 3):
            torch.set_num_threads(count)
            runs.append(Run(backend, case, ids))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert torch.equal(other.kl, runs[0].kl)
        for name, wanted in runs[0].rows.items():
            assert torch.equal(other.rows[name], wanted), name


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0), (1,)])
def test_no_rows_and_one_row(backend: TrainingBackend, lengths: tuple[int, ...]) -> None:
    case = Case(lengths)
    ids = backend.select_blocks(*case.index, case.docs, block_size=BLOCK, topk=TOPK)
    assert ids.tolist() == [[[0, -1, -1]] * case.kv_heads] * case.docs.rows
    for run in (Run(backend, case, ids), Run(backend, case, None)):
        assert float(run.kl.detach()) == pytest.approx(0, abs=1e-7)
        assert torch.equal(run.out, case.v.repeat_interleave(case.group, 1))
        assert_close(run.dq, torch.zeros_like(case.q).double(), torch.float32, absolute=1e-5)


def test_a_row_that_chose_nothing() -> None:
    case = Case((40,))
    ids = chosen(case)
    ids[5] = -1
    run = Run(REFERENCE, case, ids)
    assert torch.equal(run.out[5], torch.zeros_like(run.out[5]))
    assert run.lse[5].isneginf().all()
    assert torch.equal(run.dq[5], torch.zeros_like(run.dq[5]))
    assert not any(rows.isnan().any() for rows in run.rows.values())
    assert run.kl.isfinite()


class LargestTensor(TorchDispatchMode):
    """Watches every operator's outputs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numel = self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.untyped_storage().nbytes() // x.itemsize)
        return result


@pytest.mark.parametrize("mode", ["sparse", "dense"])
def test_nothing_larger_than_a_tile_exists(mode: str) -> None:
    case = Case((4096,), kv_heads=1, group=4, dim=16)
    assert case.q.numel() <= TILE < 4096 * 4096 // 16
    with LargestTensor() as largest:
        ids = chosen(case, 64, 8) if mode == "sparse" else None
        Run(REFERENCE, case, ids, 64)
    assert largest.calls > 1000
    assert largest.numel <= TILE


DOCS = Documents.of_lengths([10, 30])


def _zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


Q, K, INDEX_Q, INDEX_K = _zeros(40, 4, 16), _zeros(40, 2, 16), _zeros(40, 2, 16), _zeros(40, 16)
LSE, IDS = _zeros(40, 4), _zeros(40, 2, 1, dtype=torch.int32)
REFUSED: dict[str, tuple[Callable[[TrainingBackend], object], str]] = {
    "rows": (lambda b: b.dense_attention(Q[1:], K, K, DOCS), r"q must have shape \[40, any, any\], got \[39, 4, 16\]"),
    "head dim": (lambda b: b.dense_attention(Q, K[..., 1:], K, DOCS), r"k must have shape \[40, any, 16\]"),
    "values": (lambda b: b.dense_attention(Q, K, K[:, :1], DOCS), r"v \[40, 1, 16\] must have the shape of k"),
    "heads": (lambda b: b.dense_attention(Q[:, :3], K, K, DOCS), "3 query heads are not a positive multiple of 2"),
    "dtype": (lambda b: b.dense_attention(Q.half(), K.half(), K.half(), DOCS), "q is torch.float16; accepted"),
    "dtypes": (lambda b: b.dense_attention(Q, K.bfloat16(), K, DOCS), "q and k must have one dtype"),
    "ids dtype": (
        lambda b: b.sparse_attention(Q, K, K, IDS.long(), DOCS, block_size=16),
        r"ids is torch.int64; accepted: torch.int32",
    ),
    "ids layout": (
        lambda b: b.sparse_attention(Q, K, K, IDS.transpose(0, 1), DOCS, block_size=16),
        r"ids must have shape \[40, 2, any\], got \[2, 40, 1\]",
    ),
    "later block": (lambda b: b.sparse_attention(Q, K, K, IDS + 1, DOCS, block_size=16), "no block after the row's"),
    "twice": (lambda b: b.sparse_attention(Q, K, K, IDS.expand(-1, -1, 2), DOCS, block_size=16), "ascend strictly"),
    "below -1": (lambda b: b.sparse_attention(Q, K, K, IDS - 2, DOCS, block_size=16), "end in -1"),
    "block": (lambda b: b.sparse_attention(Q, K, K, IDS, DOCS, block_size=0), "block_size 0 is not positive"),
    "topk": (
        lambda b: b.select_blocks(INDEX_Q, INDEX_K, DOCS, block_size=16, topk=1, init_blocks=1),
        "local_blocks 1 and init_blocks 1 with topk 1",
    ),
    "local": (
        lambda b: b.select_blocks(INDEX_Q, INDEX_K, DOCS, block_size=16, topk=1, local_blocks=0),
        "at least 1 local block",
    ),
    "index key": (
        lambda b: b.select_blocks(INDEX_Q, K, DOCS, block_size=16, topk=1),
        r"index_k must have shape \[40, 16\], got \[40, 2, 16\]",
    ),
    "index heads": (lambda b: b.dense_kl(Q, INDEX_K, Q, K, LSE, DOCS), "index_q has 4 heads, one per KV head is 2"),
    "lse": (lambda b: b.dense_kl(INDEX_Q, INDEX_K, Q, K, LSE[:, :2], DOCS), r"lse must have shape \[40, 4\]"),
    "weight": (
        lambda b: b.sparse_kl(INDEX_Q, INDEX_K, Q, K, LSE, IDS, DOCS, block_size=16, weight=_zeros(2)),
        r"weight must have shape \[40\], got \[2\]",
    ),
    "groups": (lambda b: b.captured_mass(LSE, LSE, 3), "4 query heads do not fall into 3 groups"),
    "scale": (lambda b: b.dense_attention(Q, K, K, DOCS, scale=-1.0), "scale -1.0 is not a positive number"),
    "scale of the teacher": (lambda b: b.dense_kl(INDEX_Q, INDEX_K, Q, K, LSE, DOCS, scale=torch.nan), "scale nan is"),
    "no channels": (lambda b: b.dense_attention(Q[..., :0], K[..., :0], K[..., :0], DOCS), "q .* holds nothing"),
    "no groups": (lambda b: b.select_blocks(INDEX_Q[:, :0], INDEX_K, DOCS, block_size=16, topk=1), "index_q .* not"),
    "no slots": (lambda b: b.sparse_attention(Q, K, K, IDS[..., :0], DOCS, block_size=16), "ids .* holds nothing"),
}


def test_documents_that_cannot_be() -> None:
    with pytest.raises(UnsupportedError, match="4294967296 packed rows"):
        Documents.of_lengths([1 << 32])
    with pytest.raises(UnsupportedError, match="never fall"):
        Documents.of_lengths([5, -2])
    with pytest.raises(UnsupportedError, match="contiguous, got a stride of 2"):
        Documents(torch.tensor([0, 1, 2, 3, 4], dtype=torch.int32)[::2])
    with pytest.raises(UnsupportedError, match="must be int32"):
        Documents(torch.tensor([0, 4]))


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_arguments_are_refused_by_name(backend: TrainingBackend, what: str) -> None:
    call, message = REFUSED[what]
    with pytest.raises(UnsupportedError, match=message):
        call(backend)


def test_a_backend_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("reference")[1] == "asked for by name"
    monkeypatch.setenv("LONGSIGHT_BACKEND", "reference")
    assert choose()[0].NAME == "reference"
    with pytest.raises(BackendUnavailableError, match="unknown training backend 'gpu'; known: cpu, reference"):
        choose("gpu")
