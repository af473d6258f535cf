"""The model's own contract: which rows get logits, what a selection hook may do, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import oracle
from longsight.model import Model, load_model
from longsight.model.layers import inverse_frequencies, rope_tables
from longsight.ops import Batch, PageLayout, UnsupportedError, supports
from paged_run import PagedRun

LENGTH = 150  # several times topk * block = 48
MAIN = "cpu" if supports("cpu") is None else "reference"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oracle.save(oracle.build(oracle.text_config()), tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module", params=sorted({MAIN, "reference"}))
def model(request: pytest.FixtureRequest, checkpoint: Path) -> Model:
    return load_model(checkpoint, backend=request.param)


def tokens(length: int = LENGTH, seed: int = 5) -> torch.Tensor:
    return torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed))


def test_a_loaded_model_says_what_it_is(model: Model) -> None:
    assert model.dtype == torch.float32
    assert model.backend_reason == "asked for by name"
    cache = model.allocate_cache(7)
    assert [pages.layout for pages in cache] == [model.config.page_layout(i) for i in range(4)]
    assert [pages.index_k is None for pages in cache] == [True, False, False, False]
    assert sum(p.layout.page_bytes for p in cache) == model.config.page_bytes()
    assert model.config.page_layout(0, torch.bfloat16) == PageLayout(16, 2, 32, 0, torch.bfloat16)


@pytest.mark.parametrize("rows", [[149], [0], [3, 140, 77], [148, 148], list(range(150)), list(range(149, -1, -1))])
def test_logit_rows_are_those_rows_of_all_logits(model: Model, rows: list[int]) -> None:
    """Including the narrowed last layer, in two sequences at once."""
    text = [tokens(100), tokens(80, seed=6)]
    full, part = PagedRun(model, text, seed=1), PagedRun(model, text, seed=1)
    for run in (full, part):
        run.step(20, 10)
    batch, ids, _ = full.next_batch([80, 70])
    everything = full.model.forward(ids, batch, full.cache)
    some = part.model.forward(ids, batch, part.cache, logit_rows=torch.tensor(rows))
    assert some.shape == (len(rows), 384)
    assert float((some - everything[rows]).abs().max()) < 2e-5
    # The pages are written in full either way: what comes next cannot tell the difference.
    sequences = [(1, 100, full.pages[0]), (1, 80, full.pages[1])]
    last = torch.tensor([9, 9])
    assert torch.equal(
        model.forward(last, Batch.build(sequences), full.cache), model.forward(last, Batch.build(sequences), part.cache)
    )


def test_no_logit_rows_still_writes_the_pages(model: Model) -> None:
    silent, loud = PagedRun(model, [tokens()]), PagedRun(model, [tokens()])
    batch, ids, _ = silent.next_batch([LENGTH - 1])
    assert model.forward(ids, batch, silent.cache, logit_rows=torch.tensor([], dtype=torch.long)).shape == (0, 384)
    loud.step(LENGTH - 1)
    loud.step(1)
    batch, ids, _ = silent.next_batch([1])
    assert torch.equal(model.forward(ids, batch, silent.cache), loud.logits()[-1:])


def test_a_replaced_selection_is_the_one_attended_to(model: Model) -> None:
    """Forcing the oldest blocks on every sparse layer changes the logits exactly where there was a choice."""
    free, forced = PagedRun(model, [tokens()]), PagedRun(model, [tokens()])
    free.step(LENGTH)
    batch, ids, _ = forced.next_batch([LENGTH])
    seen = []

    def oldest(layer: int, blocks: torch.Tensor) -> torch.Tensor:
        seen.append(layer)
        own = (batch.positions // 16)[:, None, None]
        first = torch.arange(3, dtype=torch.int32).expand(blocks.shape)
        kept = torch.where(first <= own, first, -1)
        kept[..., 2:] = torch.where(own > 2, own, kept[..., 2:])  # the local block stays
        return kept.to(torch.int32)

    logits = model.forward(ids, batch, forced.cache, on_select=oldest)
    moved = (logits - free.logits()).abs().amax(-1) > 1e-3
    assert seen == [1, 2, 3]
    assert not bool(moved[:48].any())
    assert bool(moved[64:].any())


def test_a_hook_that_only_looks_changes_nothing(model: Model) -> None:
    batch = Batch.build([(LENGTH, LENGTH, list(range(10)))])
    quiet = model.forward(tokens(), batch, model.allocate_cache(10))
    assert torch.equal(quiet, model.forward(tokens(), batch, model.allocate_cache(10), on_select=lambda *_: None))


def test_a_hook_sees_every_row_whatever_logits_are_wanted(model: Model) -> None:
    batch = Batch.build([(LENGTH, LENGTH, list(range(10)))])
    seen: dict[int, list[int]] = {}
    model.forward(
        tokens(),
        batch,
        model.allocate_cache(10),
        logit_rows=torch.tensor([LENGTH - 1]),
        on_select=lambda layer, ids: seen.update({layer: list(ids.shape)}),
    )
    assert seen == {layer: [LENGTH, 2, 3] for layer in (1, 2, 3)}


def test_rope_tables_at_a_million() -> None:
    """fp32 positions times fp32 frequencies, as transformers computes them; the fast pairs still turn correctly."""
    positions = torch.tensor([0, 1, 2**20 - 1], dtype=torch.int32)
    cos, sin = rope_tables(positions, inverse_frequencies(5e6, 64))
    exact = positions.double()[:, None] * (5e6 ** -(torch.arange(0, 64, 2).double() / 64))
    assert cos.dtype == sin.dtype == torch.float32
    assert float((cos[:2] - exact[:2].cos()).abs().max()) < 1e-6
    assert float((sin[2] - exact[2].sin()).abs().max()) < 0.05
    assert torch.equal(cos[:, 0], positions.float().cos())


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (torch.tensor([1, 2, 384]), "token ids span 1..384; the vocabulary is 0..383"),
        (torch.tensor([1, -1, 3]), "token ids span -1..3"),
        (torch.tensor([1, 2]), r"token_ids must be int64 \[3\], got torch.int64 \[2\]"),
        (torch.tensor([1, 2, 3], dtype=torch.int32), "token_ids must be int64"),
    ],
)
def test_bad_tokens_are_refused(model: Model, ids: torch.Tensor, says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        model.forward(ids, Batch.build([(3, 3, [0])]), model.allocate_cache(1))


def test_a_cache_of_other_depth_is_refused(model: Model) -> None:
    with pytest.raises(UnsupportedError, match="the cache must hold 4 layers, got 3"):
        model.forward(torch.tensor([1]), Batch.build([(1, 1, [0])]), model.allocate_cache(1)[:3])


def test_an_empty_step_is_no_error(model: Model) -> None:
    logits = model.forward(torch.tensor([], dtype=torch.long), Batch.build([]), model.allocate_cache(1))
    assert logits.shape == (0, 384)
