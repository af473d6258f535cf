"""Recorded steps: the same bits as running the model directly, for any shape, and nothing that cannot be replayed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import oracle
from longsight.model import Model, load_model
from longsight.model.replay import MAX_ROWS, StepReplay
from longsight.ops import Batch, UnsupportedError, supports
from longsight.ops.tape import record
from paged_run import PagedRun

pytestmark = pytest.mark.skipif(supports("cpu") is not None, reason="needs the compiled kernels")
LENGTH = 150  # several times topk * block = 48


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = oracle.save(oracle.build(oracle.text_config()), tmp_path_factory.mktemp("checkpoint"))
    return load_model(path, backend="cpu", dtype=request.param)


def tokens(length: int, seed: int) -> torch.Tensor:
    return torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed))


def test_replayed_steps_give_the_bits_of_direct_ones(model: Model) -> None:
    sequences = [tokens(LENGTH + 40, 1), tokens(LENGTH + 40, 2), tokens(70, 3)]
    direct, replayed = PagedRun(model, sequences), PagedRun(model, sequences)
    replay = StepReplay(model, replayed.cache, max_blocks=32)
    for run in (direct, replayed):
        run.step(LENGTH, LENGTH - 7, 21)
    # Shapes come back after others, sequences join and leave, and a draft's rows ride along.
    for counts in [(1, 1, 1), (1, 1, 1), (3, 1, 0), (1, 1, 1), (1, 4, 1), (3, 1, 0), (0, 1, 0), (1, 0, 0), (2, 2, 2)]:
        batch, ids, _ = direct.next_batch(counts)
        want = model.forward(ids, batch, direct.cache)
        batch, ids, _ = replayed.next_batch(counts)
        logits, likeliest, best = replay.forward(ids, batch)
        assert torch.equal(logits.float(), want), counts
        assert torch.equal(likeliest, want.argmax(-1)), counts
        assert torch.equal(best, want.amax(-1)), counts
    for mine, theirs in zip(replayed.cache, direct.cache, strict=True):
        assert torch.equal(mine.k.nan_to_num(), theirs.k.nan_to_num())


def test_another_number_of_threads_records_anew(model: Model) -> None:
    run, other = PagedRun(model, [tokens(LENGTH, 5)]), PagedRun(model, [tokens(LENGTH, 5)])
    run.step(LENGTH - 4)
    other.step(LENGTH - 4)
    replay, threads = StepReplay(model, run.cache, max_blocks=16), torch.get_num_threads()
    try:
        for count in (threads, 1, threads):
            torch.set_num_threads(count)
            batch, ids, _ = run.next_batch((1,))
            expected_batch, expected_ids, _ = other.next_batch((1,))
            assert torch.equal(
                replay.forward(ids, batch)[0].float(), model.forward(expected_ids, expected_batch, other.cache)
            )
    finally:
        torch.set_num_threads(threads)


def test_bad_arguments_are_refused_before_anything_runs(model: Model) -> None:
    run = PagedRun(model, [tokens(LENGTH, 6)])
    run.step(LENGTH - 4)
    replay = StepReplay(model, run.cache, max_blocks=16)
    batch, _, _ = run.next_batch((1,))
    with pytest.raises(UnsupportedError, match="vocabulary"):
        replay.forward(torch.tensor([10**6]), batch)
    with pytest.raises(UnsupportedError, match=r"pages 0\.\.999"):
        replay.forward(torch.tensor([5]), Batch.build([(1, 20, [0, 999])]))
    assert not replay.supports(0)
    assert not replay.supports(MAX_ROWS + 1)


def test_a_step_that_computes_outside_the_kernels_is_not_recorded() -> None:
    with pytest.raises(UnsupportedError, match="calls mul"), record():
        torch.empty(3).mul(2)
