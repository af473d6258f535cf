"""Every CPU instruction set against the reference operators: shapes off the grid, ties, poison, many geometries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from longsight.ops import Batch, LayerPages, PackedExperts, PackedLinear, PageLayout, UnsupportedError, choose, kernels
from longsight.ops.backends import Backend

REFERENCE, _ = choose("reference")
CPU, _ = choose("cpu")
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(params=kernels.usable_isas())
def cpu(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The CPU backend on one instruction set; two threads, so that splits and merges run."""
    before, threads = kernels.isa(), torch.get_num_threads()
    kernels.use_isa(request.param)
    torch.set_num_threads(2)
    yield CPU
    torch.set_num_threads(threads)
    kernels.use_isa(before)


class Case:
    """Random sequences in shuffled pages; slots that no token owns hold NaN."""

    def __init__(
        self,
        lengths: list[tuple[int, int]],
        *,
        block: int = 16,
        kv_heads: int = 2,
        group: int = 4,
        dim: int = 32,
        index_dim: int = 32,
        dtype: torch.dtype = torch.float32,
        integers: bool = False,
        peak: float = 1.0,
        seed: int = 0,
    ) -> None:
        g = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            if integers:
                return torch.randint(-2, 3, shape, generator=g).to(dtype)
            return torch.randn(shape, generator=g).to(dtype)

        self.layout = PageLayout(block, kv_heads, dim, index_dim, dtype)
        counts = [-(-kv // block) for _, kv in lengths]
        total = sum(counts) + 3
        order = torch.randperm(total, generator=g).tolist()
        sequences = []
        for (q_len, kv_len), count in zip(lengths, counts, strict=True):
            sequences.append((q_len, kv_len, [order.pop() for _ in range(count)]))
        self.batch = Batch.build(sequences)
        rows = self.batch.rows
        self.pages = LayerPages.allocate(self.layout, total)
        for tensor in (self.pages.k, self.pages.v, self.pages.index_k):
            assert tensor is not None
            tensor.fill_(float("nan"))
        history = Batch.build([(kv_len, kv_len, pages) for _, kv_len, pages in sequences])
        self.k, self.v = draw(history.rows, kv_heads, dim), draw(history.rows, kv_heads, dim)
        self.index_k = draw(history.rows, index_dim)
        self.history = history
        REFERENCE.append_kv(self.pages, history, self.k, self.v, self.index_k)
        self.q = (draw(rows, kv_heads * group, dim).float() * peak).to(dtype)
        self.index_q = draw(rows, kv_heads, index_dim)


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Within a few roundings of the storage dtype, relative to the largest value."""
    tolerance = 2e-5 if dtype == torch.float32 else 1.5e-2
    assert not actual.isnan().any()
    finite = expected.float().isfinite()
    assert torch.equal(actual.float().isfinite(), finite)
    scale = expected.float()[finite].abs().max().clamp(min=1.0) if finite.any() else 1.0
    error = (actual.float() - expected.float())[finite].abs().max() if finite.any() else torch.zeros(())
    assert float(error) <= tolerance * float(scale)


# (q_len, kv_len): one token, whole blocks, off the grid, beyond topk * block, a chunk in the middle, a padded start
LENGTHS = [(1, 1), (1, 300), (5, 17), (16, 16), (33, 203), (48, 48), (7, 241), (4, 2)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("topk", "local", "init"), [(3, 1, 0), (4, 2, 1), (1, 1, 0), (20, 1, 0), (2, 1, 1)])
def test_selection_is_that_of_the_reference(cpu: Backend, dtype: torch.dtype, topk: int, local: int, init: int) -> None:
    # Small integers make every score exact in any order of summation, and ties frequent.
    case = Case(LENGTHS, dtype=dtype, integers=True)
    kwargs = {"topk": topk, "local_blocks": local, "init_blocks": init}
    expected = REFERENCE.select_blocks(case.index_q, case.pages, case.batch, **kwargs)
    assert torch.equal(cpu.select_blocks(case.index_q, case.pages, case.batch, **kwargs), expected)
    visible = int(case.batch.positions.max()) // 16 + 1
    assert topk >= visible or bool((expected >= 0).sum(-1).max() < visible)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("block", "kv_heads", "group", "dim", "index_dim", "topk"),
    [
        (16, 1, 1, 16, 16, 2),
        (32, 2, 3, 48, 80, 3),
        (48, 3, 16, 64, 32, 4),
        (64, 1, 64, 128, 128, 2),
        (128, 4, 16, 128, 128, 3),
        (80, 2, 5, 96, 240, 2),
        (128, 1, 2, 256, 256, 2),
    ],
)
def test_attention_in_every_geometry(
    cpu: Backend, dtype: torch.dtype, block: int, kv_heads: int, group: int, dim: int, index_dim: int, topk: int
) -> None:
    lengths = [(3, 5 * block + 7), (1, topk * block), (2, topk * block + 1), (block + 3, 2 * block - 1)]
    case = Case(
        lengths, block=block, kv_heads=kv_heads, group=group, dim=dim, index_dim=index_dim, dtype=dtype, peak=2.0
    )
    ids = REFERENCE.select_blocks(case.index_q, case.pages, case.batch, topk=topk)
    for actual, expected in (
        (
            cpu.sparse_attention(case.q, case.pages, case.batch, ids),
            REFERENCE.sparse_attention(case.q, case.pages, case.batch, ids),
        ),
        (
            cpu.dense_attention(case.q, case.pages, case.batch),
            REFERENCE.dense_attention(case.q, case.pages, case.batch),
        ),
    ):
        assert_close(actual[0], expected[0], dtype)
        assert_close(actual[1], expected[1], torch.float32 if dtype == torch.float32 else dtype)
    chosen = cpu.select_blocks(case.index_q, case.pages, case.batch, topk=topk)
    assert_selection_within_margin(case, chosen, ids)


def assert_selection_within_margin(case: Case, actual: Tensor, expected: Tensor) -> None:
    """Rows may differ from the reference only where the swapped blocks' scores differ by rounding."""
    for row, group in (actual != expected).any(-1).nonzero().tolist():
        sequence = int(case.batch.row_sequence[row])
        keys = case.pages.index_keys(case.batch.pages_of(sequence, case.layout.block_size)).float()
        scores = (keys @ case.index_q[row, group].float()).amax(-1)
        a, b = set(actual[row, group].tolist()), set(expected[row, group].tolist())
        swapped = scores[torch.tensor(sorted((a - b) | (b - a)))]
        assert len(a) == len(b)
        assert float(swapped.max() - swapped.min()) < 1e-4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padding_rows_select_nothing_and_return_zero(cpu: Backend, dtype: torch.dtype) -> None:
    case = Case([(4, 2), (3, 40)], dtype=dtype)
    ids = cpu.select_blocks(case.index_q, case.pages, case.batch, topk=3)
    assert bool((ids[:2] == -1).all())
    for out, lse in (
        cpu.sparse_attention(case.q, case.pages, case.batch, ids),
        cpu.dense_attention(case.q, case.pages, case.batch),
    ):
        assert bool((out[:2] == 0).all())
        assert bool((lse[:2] == -torch.inf).all())
        assert bool(lse[2:].isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_append_writes_what_the_reference_writes(cpu: Backend, dtype: torch.dtype) -> None:
    case = Case(LENGTHS, dtype=dtype, dim=48, index_dim=80)
    written = LayerPages.allocate(case.layout, case.pages.k.shape[0])
    for tensor in (written.k, written.v, written.index_k):
        assert tensor is not None
        tensor.fill_(float("nan"))
    strided = torch.cat((case.k, case.v), 1)  # rows of a fused projection
    cpu.append_kv(written, case.history, strided[:, :2], strided[:, 2:], case.index_k)
    assert case.pages.index_k is not None
    assert written.index_k is not None
    pairs = ((written.k, case.pages.k), (written.v, case.pages.v), (written.index_k, case.pages.index_k))
    for actual, expected in pairs:
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.equal(actual.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_chunking_thread_count_and_batch_gives_the_same_bits(cpu: Backend, dtype: torch.dtype) -> None:
    # 70 blocks of 16 tokens: more than one dense segment, far beyond topk * block.
    kv = 70 * 16 + 5
    case = Case([(kv, kv)], dtype=dtype, group=4, peak=3.0)
    pages = case.batch.pages_of(0, 16).tolist()
    whole = run(cpu, case, case.batch, slice(0, kv))
    for chunk, threads in ((kv, 1), (37, 2), (256, 1), (1, 2)):
        torch.set_num_threads(threads)
        starts = range(0, kv, chunk) if chunk > 1 else (kv - 1, kv - 16, 64 * 16, 63)
        for start in starts:
            rows = slice(start, min(start + chunk, kv))
            batch = Batch.build([(rows.stop - start, rows.stop, pages)])
            for actual, expected in zip(run(cpu, case, batch, rows), whole, strict=True):
                assert torch.equal(actual, expected[rows])


def run(backend: Backend, case: Case, batch: Batch, rows: slice) -> tuple[Tensor, ...]:
    q, index_q = case.q[rows].contiguous(), case.index_q[rows].contiguous()
    ids = backend.select_blocks(index_q, case.pages, batch, topk=3)
    return (
        ids,
        *backend.sparse_attention(q, case.pages, batch, ids),
        *backend.dense_attention(q, case.pages, batch),
    )


def test_equal_scores_go_to_the_lower_block_and_signed_zeros_are_equal(cpu: Backend) -> None:
    case = Case([(1, 16 * 12)], kv_heads=1)
    assert case.pages.index_k is not None
    for zeros in (0.0, -0.0):
        case.pages.index_k.fill_(zeros)
        ids = cpu.select_blocks(case.index_q, case.pages, case.batch, topk=4)
        assert ids.tolist() == [[[0, 1, 2, 11]]]
    case.pages.index_k[case.batch.block_table[0, 7].long()] = 0.0
    assert cpu.select_blocks(case.index_q, case.pages, case.batch, topk=4).tolist() == [[[0, 1, 2, 11]]]


def test_all_scores_negative_never_choose_missing_tokens(cpu: Backend) -> None:
    case = Case([(1, 16 * 9 + 3)], kv_heads=1)
    assert case.pages.index_k is not None
    case.index_q.fill_(-1.0)
    case.pages.index_k.nan_to_num_(nan=5.0).abs_()
    expected = REFERENCE.select_blocks(case.index_q, case.pages, case.batch, topk=4)
    assert torch.equal(cpu.select_blocks(case.index_q, case.pages, case.batch, topk=4), expected)


def test_groups_choose_their_own_blocks(cpu: Backend) -> None:
    case = Case([(64, 600)])
    ids = cpu.select_blocks(case.index_q, case.pages, case.batch, topk=3)
    assert bool((ids[:, 0] != ids[:, 1]).any())


def test_many_candidates_across_segments(cpu: Backend) -> None:
    """Enough blocks for a decode scan to be cut among threads, with all scores tied in places. Threads tell each other
    what is out of reach, in whatever order they come to it, and a tie with a later block is not."""
    case = Case([(1, 16 * 1700), (2, 16 * 900 + 9)], integers=True, kv_heads=1, dim=16, index_dim=16)
    threads = torch.get_num_threads()
    try:
        for topk in (2, 16, 17, 40):
            expected = REFERENCE.select_blocks(case.index_q, case.pages, case.batch, topk=topk)
            for count in (1, *[2, 3, 7] * 10):
                torch.set_num_threads(count)
                assert torch.equal(cpu.select_blocks(case.index_q, case.pages, case.batch, topk=topk), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits_do_not_overflow(cpu: Backend, dtype: torch.dtype) -> None:
    case = Case([(5, 200)], dtype=dtype, peak=1e4)
    expected = REFERENCE.dense_attention(case.q, case.pages, case.batch)[0]
    assert_close(cpu.dense_attention(case.q, case.pages, case.batch)[0], expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "inner", "outer"), [(1, 64, 64), (7, 48, 40), (101, 528, 272), (250, 1040, 16)])
def test_linear(cpu: Backend, dtype: torch.dtype, rows: int, inner: int, outer: int) -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(rows, inner + 16, generator=g).to(dtype)[:, :inner]
    weight = PackedLinear.from_dense((torch.randn(outer, inner, generator=g) / inner**0.5).to(dtype))
    y = cpu.linear(x, weight)
    assert_close(y, REFERENCE.linear(x, weight), dtype)
    assert torch.equal(cpu.linear(x[-1:], weight), y[-1:])  # a row does not depend on its neighbours


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_rotation_and_gate(cpu: Backend, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(2)
    fused = torch.randn(37, 10 * 48, generator=g).to(dtype)
    x = fused.view(37, 10, 48)[:, 2:7]
    weight = (0.3 * torch.randn(48, generator=g)).to(dtype)
    for half in (4, 16, 20, 24):
        angle = torch.randn(37, half, generator=g)
        args = (x, weight, angle.cos(), angle.sin(), 1e-6)
        assert_close(cpu.norm_rope(*args), REFERENCE.norm_rope(*args), dtype)
    rows = fused[:, :96]
    gain = (0.3 * torch.randn(96, generator=g)).to(dtype)
    assert_close(cpu.rms_norm(rows, gain, 1e-6), REFERENCE.rms_norm(rows, gain, 1e-6), dtype)
    gate_up = (fused * 6).contiguous()  # beyond both clamps
    assert_close(cpu.swiglu(gate_up, 1.702, 7.0), REFERENCE.swiglu(gate_up, 1.702, 7.0), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_experts(cpu: Backend, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(3)
    hidden, width, count, rows = 64, 48, 5, 230
    x = torch.randn(rows, hidden, generator=g).to(dtype)

    def packed(n: int, k: int) -> tuple[PackedLinear, ...]:
        return tuple(PackedLinear.from_dense((torch.randn(n, k, generator=g) / k**0.5).to(dtype)) for _ in range(count))

    experts = PackedExperts(packed(2 * width, hidden), packed(hidden, width))
    ids = torch.stack([torch.randperm(count - 1, generator=g)[:2] for _ in range(rows)])  # the last expert stays idle
    weights = torch.rand(rows, 2, generator=g)
    y = cpu.moe(x, ids, weights, experts, 1.702, 7.0)
    assert_close(y, REFERENCE.moe(x, ids, weights, experts, 1.702, 7.0), dtype)
    assert torch.equal(cpu.moe(x[9:10], ids[9:10], weights[9:10], experts, 1.702, 7.0), y[9:10])
    with pytest.raises(UnsupportedError, match=r"0\.\.4"):
        cpu.moe(x, ids + 3, weights, experts, 1.702, 7.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_likeliest(cpu: Backend, dtype: torch.dtype) -> None:
    """The first of equal maxima, infinities of both signs, NaN above all; short rows and long ones."""
    g = torch.Generator().manual_seed(11)
    for vocab in (1, 5, 16, 63, 64, 1000, 1024, 1025, 70_001):
        logits = torch.randint(-40, 40, (9, vocab), generator=g).to(dtype)
        logits[1] = -torch.inf
        logits[2, vocab // 2] = torch.inf
        logits[3, :: max(vocab // 3, 1)] = -torch.inf
        logits[4, vocab // 3] = torch.inf
        logits[4, vocab // 2] = -torch.inf
        logits[5, vocab // 2] = torch.nan
        logits[6, -1] = 41
        logits[7, vocab - 1 - vocab // 4 :] = 50
        ids, best = cpu.likeliest(logits)
        expected_ids, expected = REFERENCE.likeliest(logits)
        assert torch.equal(ids, expected_ids)
        assert torch.equal(best.nan_to_num(7e7), expected.nan_to_num(7e7))


def test_sums_between_dtypes(cpu: Backend) -> None:
    g = torch.Generator().manual_seed(3)
    for y_dtype in (torch.bfloat16, torch.float32):
        for x_dtype in (torch.bfloat16, torch.float32):
            for shape in ((1, 7), (3, 33), (700, 48)):
                y, x = torch.randn(shape, generator=g).to(y_dtype), torch.randn(shape, generator=g).to(x_dtype)
                want = REFERENCE.add(y.clone(), x)
                assert cpu.add(y, x) is y
                assert torch.equal(y, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_router(cpu: Backend, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(4)
    x, bias = torch.randn(130, 64, generator=g).to(dtype), torch.randn(9, generator=g)
    weight = PackedLinear.from_dense(torch.randn(9, 64, generator=g))
    ids, weights = cpu.route(x, weight, bias, 3, 2.0)
    want_ids, want = REFERENCE.route(x, weight, bias, 3, 2.0)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(weights, want, rtol=1e-5, atol=0)
    alone = cpu.route(x[77:78], weight, bias, 3, 2.0)
    assert torch.equal(alone[0], ids[77:78])
    assert torch.equal(alone[1], weights[77:78])
    # Equal scores: the lower experts, in order.
    ids, weights = cpu.route(torch.zeros(1, 64, dtype=dtype), weight, torch.zeros(9), 3, 1.0)
    assert ids.tolist() == [[0, 1, 2]]
    torch.testing.assert_close(weights, torch.full((1, 3), 1 / 3))
    with pytest.raises(UnsupportedError, match=r"10.*9 experts"):
        cpu.route(x, weight, bias, 10, 1.0)


def test_bad_arguments_are_refused_by_name(cpu: Backend) -> None:
    case = Case([(2, 100)])
    ids = cpu.select_blocks(case.index_q, case.pages, case.batch, topk=3)
    with pytest.raises(UnsupportedError, match="ascend"):
        cpu.sparse_attention(case.q, case.pages, case.batch, ids.flip(-1).contiguous())
    with pytest.raises(UnsupportedError, match="own block"):
        cpu.sparse_attention(case.q, case.pages, case.batch, ids + 5)
    with pytest.raises(UnsupportedError, match="token, group, slot"):
        cpu.sparse_attention(case.q, case.pages, case.batch, ids.transpose(0, 1)[:1])
    with pytest.raises(UnsupportedError, match="k at least 1"):
        cpu.sparse_attention(case.q, case.pages, case.batch, ids[..., :0])
    with pytest.raises(UnsupportedError, match="at least one group"):
        cpu.select_blocks(case.index_q[:, :0], case.pages, case.batch, topk=3)
    with pytest.raises(UnsupportedError, match="topk 1 must hold"):
        cpu.select_blocks(case.index_q, case.pages, case.batch, topk=1, init_blocks=1)
    with pytest.raises(UnsupportedError, match="q must be"):
        cpu.dense_attention(case.q.to(torch.bfloat16), case.pages, case.batch)
    outside = Batch.build([(2, 100, [99] * 7)])
    with pytest.raises(UnsupportedError, match="99"):
        cpu.dense_attention(case.q, case.pages, outside)
    with pytest.raises(UnsupportedError, match="block_table row"):
        cpu.dense_attention(case.q, case.pages, Batch.build([(2, 100, [1])]))
    with pytest.raises(UnsupportedError, match="multiple of 16"):
        PageLayout(20, 1, 32, 32, torch.float32)
    with pytest.raises(UnsupportedError, match="float16"):
        PageLayout(16, 1, 32, 32, torch.float16)
