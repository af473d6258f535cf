"""Scans of 8-bit copies first: never another choice than that of the exact scores, however unkind the keys."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longsight.engine import Engine, Request, SamplingParams, Selection
from longsight.model import load_model
from longsight.ops import Batch, LayerPages, PageLayout, UnsupportedError, supports
from tiny_checkpoint import BLOCK, CONFIG

if supports("cpu") is not None:
    pytest.skip("the compiled kernels are not built", allow_module_level=True)

from longsight.ops import cpu, kernels

NEVER, ALWAYS = cpu.ScreenFrom(1 << 40, 1 << 40), cpu.ScreenFrom(0, 0)
needs_screen = pytest.mark.skipif(not kernels.screens(), reason="this machine has no 8-bit dot products")


def keys_of(kind: str, n: int, dim: int, g: torch.Generator) -> Tensor:
    noise = torch.randn(n, dim, generator=g)
    if kind == "offset":  # all on one side, so that midranges matter
        return noise * 0.1 + 5
    if kind == "drift":
        return noise.cumsum(0) * 0.05
    if kind == "sizes":  # blocks of very different lengths, and single channels that dwarf the others
        return noise * torch.rand(n, 1, generator=g).mul(8).exp() * torch.rand(dim, generator=g).mul(4).exp()
    if kind == "ties":
        return torch.randint(-1, 2, (n, dim), generator=g).float()
    if kind == "equal":
        return noise[:1].expand(n, dim)
    if kind == "tiny":
        return noise * 1e-36
    if kind == "huge":  # squares overflow, scores do not
        return noise * 1e20
    return noise


def filled(
    keys: Tensor, sequences: list[tuple[int, int]], block: int, g: torch.Generator
) -> tuple[LayerPages, list[tuple[int, int, list[int]]]]:
    """Pages of sequences (rows, length) in shuffled order, their keys written in uneven steps."""
    dim = keys.shape[1]
    layout = PageLayout(block, 1, 16, dim, torch.bfloat16, screened=True)
    counts = [-(-length // block) for _, length in sequences]
    order = torch.randperm(sum(counts), generator=g).tolist()
    pages = LayerPages.allocate(layout, sum(counts))
    for tensor in pages.tensors:
        tensor.view(torch.uint8).fill_(0x7F)  # unwritten slots hold NaN or worse
    batch = []
    for (rows, length), count in zip(sequences, counts, strict=True):
        table = [order.pop() for _ in range(count)]
        batch.append((rows, length, table))
        at = 0
        while at < length:
            step = min(int(torch.randint(1, 3 * block, (1,), generator=g)), length - at)
            kv = torch.zeros(step, 1, 16, dtype=torch.bfloat16)
            cpu.append_kv(pages, Batch.build([(step, at + step, table)]), kv, kv, keys[at : at + step])
            at += step
    return pages, batch


def screened(q: Tensor, pages: LayerPages, batch: Batch, **options: int) -> Tensor:
    """A choice by way of the codes, whether they paid in the calls before or not."""
    assert pages.screen_pauses is not None
    pages.screen_pauses.zero_()
    return cpu.select_blocks(q, pages, batch, **options)


@needs_screen
@pytest.mark.parametrize("kind", ["noise", "offset", "drift", "sizes", "ties", "equal", "tiny", "huge"])
@pytest.mark.parametrize(
    ("block", "dim", "topk"), [(16, 16, 3), (48, 80, 4), (128, 128, 16), (64, 256, 18), (32, 48, 1)]
)
def test_the_same_blocks_as_the_exact_scan(
    kind: str, block: int, dim: int, topk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(block + dim)
    keys = keys_of(kind, 70 * block, dim, g).bfloat16()
    # One token, a few, many, and more than a tile's, some of whom see nothing or little; several threads and one.
    sequences = [(1, 69 * block + 5), (3, 70 * block), (40, 50 * block + 3), (7, 7), (150, 66 * block - 1)]
    pages, batch = filled(keys, sequences, block, g)
    together = Batch.build(batch)
    q = (
        keys_of("noise" if kind in ("tiny", "huge") else kind, together.rows * 3, dim, g)
        .bfloat16()
        .view(together.rows, 3, dim)
    )
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            monkeypatch.setattr(cpu, "screen_from", NEVER)
            exact = cpu.select_blocks(q, pages, together, topk=topk)
            monkeypatch.setattr(cpu, "screen_from", ALWAYS)
            assert torch.equal(screened(q, pages, together, topk=topk), exact)
            if topk > 3:
                wide = {"topk": topk, "local_blocks": 2, "init_blocks": 1}
                got = screened(q, pages, together, **wide)
                monkeypatch.setattr(cpu, "screen_from", NEVER)
                assert torch.equal(got, cpu.select_blocks(q, pages, together, **wide))
    finally:
        torch.set_num_threads(threads)


@needs_screen
def test_more_blocks_than_are_screened_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(3)
    n, block = 16 * 2500, 16
    pages, batch = filled(keys_of("noise", n, 32, g).bfloat16(), [(90, n)], block, g)
    q = torch.randn(90, 4, 32, generator=g).bfloat16()
    monkeypatch.setattr(cpu, "screen_from", NEVER)
    exact = cpu.select_blocks(q, pages, Batch.build(batch), topk=5)
    monkeypatch.setattr(cpu, "screen_from", ALWAYS)
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        assert torch.equal(screened(q, pages, Batch.build(batch), topk=5), exact)


@needs_screen
def test_the_copies_decide_nothing_unless_they_are_true(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the tests: with wrong codes the choice is wrong, so the codes are really read."""
    g = torch.Generator().manual_seed(4)
    pages, batch = filled(keys_of("noise", 1600, 32, g).bfloat16(), [(20, 1600)], 16, g)
    q = torch.randn(20, 2, 32, generator=g).bfloat16()
    monkeypatch.setattr(cpu, "screen_from", ALWAYS)
    right = screened(q, pages, Batch.build(batch), topk=4)
    assert pages.index_codes is not None
    pages.index_codes[:, : 16 * 32] = torch.randint(1, 256, (100, 512), generator=g, dtype=torch.uint8)
    assert not torch.equal(screened(q, pages, Batch.build(batch), topk=4), right)


@needs_screen
@pytest.mark.parametrize("rows", [1, 40])
def test_where_it_does_not_pay_it_is_left_off(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "screen_from", ALWAYS)
    g = torch.Generator().manual_seed(8)
    n = 16 * 400
    q = torch.randn(rows, 2, 32, generator=g).bfloat16()
    many = int(rows > 1)
    for keys, pays in ((torch.zeros(n, 32), False), (keys_of("noise", n, 32, g), True)):
        pages, batch = filled(keys.bfloat16(), [(rows, n)], 16, g)
        assert pages.screen_pauses is not None
        seen = []
        for _ in range(110):
            cpu.select_blocks(q, pages, Batch.build(batch), topk=4)
            seen.append(pages.screen_pauses[many].tolist())
        if pays:
            assert seen == [[0, 0]] * 110
        else:  # tried again after 32 calls, then after 64
            assert seen == [
                *([i, 32] for i in range(32, -1, -1)),
                *([i, 64] for i in range(64, -1, -1)),
                *([i, 128] for i in range(128, 116, -1)),
            ]
        assert pages.screen_pauses[1 - many].tolist() == [0, 0]


@needs_screen
def test_a_page_rewritten_after_rejected_guesses_is_copied_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(5)
    block, n = 16, 16 * 60
    keys = keys_of("noise", n, 32, g).bfloat16()
    pages, batch = filled(keys, [(1, n)], block, g)
    table = batch[0][2]
    # Guesses fill page 20 and spill into page 21; then others take their place, one by one.
    for start, stop in [(20 * block + 9, 21 * block + 4), *((i, i + 1) for i in range(20 * block + 9, 21 * block + 4))]:
        wrong = torch.randn(stop - start, 32, generator=g).bfloat16() * 9 if stop - start > 1 else keys[start:stop]
        kv = torch.zeros(stop - start, 1, 16, dtype=torch.bfloat16)
        cpu.append_kv(pages, Batch.build([(stop - start, stop, table)]), kv, kv, wrong)
    q = torch.randn(1, 4, 32, generator=g).bfloat16()
    monkeypatch.setattr(cpu, "screen_from", ALWAYS)
    fresh, again = filled(keys, [(1, n)], block, torch.Generator().manual_seed(9))
    assert torch.equal(
        cpu.select_blocks(q, pages, Batch.build(batch), topk=4), cpu.select_blocks(q, fresh, Batch.build(again), topk=4)
    )


@needs_screen
def test_keys_that_are_not_finite_rule_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(6)
    keys = keys_of("noise", 16 * 50, 32, g)
    keys[16 * 7 + 3] = torch.inf
    pages, batch = filled(keys.bfloat16(), [(1, 16 * 50)], 16, g)
    q = torch.rand(1, 2, 32, generator=g).bfloat16()  # positive: the score is +inf, and not NaN
    monkeypatch.setattr(cpu, "screen_from", ALWAYS)
    got = cpu.select_blocks(q, pages, Batch.build(batch), topk=3)
    assert (got == 7).any(-1).all()
    monkeypatch.setattr(cpu, "screen_from", NEVER)
    assert torch.equal(got, cpu.select_blocks(q, pages, Batch.build(batch), topk=3))


def test_pages_that_hold_no_copies_are_scanned_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(7)
    pages, batch = filled(keys_of("noise", 800, 32, g).bfloat16(), [(4, 800)], 16, g)
    plain = dataclasses.replace(pages, index_codes=None)
    q = torch.randn(4, 2, 32, generator=g).bfloat16()
    monkeypatch.setattr(cpu, "screen_from", ALWAYS)
    want = cpu.select_blocks(q, plain, Batch.build(batch), topk=3)
    isa = kernels.isa()
    try:
        for name in kernels.usable_isas():  # instruction sets without 8-bit products ignore the copies
            kernels.use_isa(name)
            assert torch.equal(cpu.select_blocks(q, pages, Batch.build(batch), topk=3), want)
    finally:
        kernels.use_isa(isa)


@needs_screen
def test_an_engine_answers_alike_with_and_without_copies(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through shared pages, copied tails, preemption, guesses, mapped files and a restart."""
    monkeypatch.setattr(cpu, "screen_from", ALWAYS)
    model = load_model(tiny_checkpoint, dtype=torch.bfloat16, backend="cpu")
    rng = random.Random(1)
    stem = rng.choices(range(8), k=200)
    prompts = [stem[: rng.randint(100, 200)] + rng.choices(range(256), k=rng.randint(1, 60)) for _ in range(10)]

    def answers(**options: Any) -> list[tuple[list[int], list[Selection]]]:
        e = Engine(model, chunk_tokens=48, max_running=4, **options)
        assert e.screened == options.get("screen", True)
        requests = [
            Request(p, SamplingParams(max_tokens=40, temperature=0, ignore_eos=True), i % 2 == 0)
            for i, p in enumerate(prompts)
        ]
        for r in requests:
            e.add(r)
        while e.has_work:
            e.step()
        e.close()
        return [(r.output, r.selections) for r in requests]

    few = 30 * CONFIG.page_bytes(torch.bfloat16, screened=True)
    plain = answers(screen=False, prefix_cache=False, kv_bytes=4 * few)
    assert answers(kv_bytes=4 * few) == plain
    assert answers(kv_bytes=few) == plain
    for _ in range(2):
        assert answers(kv_bytes=2 * few, kv_dir=tmp_path, fingerprint=b"x") == plain


@needs_screen
def test_what_was_asked_for_goes_before_speed(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "screen_from", ALWAYS)
    model = load_model(tiny_checkpoint, dtype=torch.bfloat16, backend="cpu")
    plain, screened = CONFIG.page_bytes(torch.bfloat16), CONFIG.page_bytes(torch.bfloat16, screened=True)
    assert plain < screened
    tight = Engine(model, max_model_len=40 * BLOCK, kv_bytes=40 * plain)
    assert (tight.screened, tight.pages.total) == (False, 40)
    roomy = Engine(model, max_model_len=40 * BLOCK, kv_bytes=40 * screened)
    assert (roomy.screened, roomy.pages.total, roomy.page_bytes) == (True, 40, screened)
    assert sum(t.numel() * t.itemsize for layer in roomy.runner.cache for t in layer.tensors) == 40 * screened
    short = Engine(load_model(tiny_checkpoint, backend="cpu"), kv_bytes=40 * screened)  # fp32: no copies
    assert not short.screened


def test_the_layout_counts_the_copies() -> None:
    plain = PageLayout(128, 4, 128, 128, torch.bfloat16)
    screened = dataclasses.replace(plain, screened=True)
    assert screened.page_bytes - plain.page_bytes == 128 * 128 + 256 + 64
    pages = LayerPages.over(screened, 3, torch.zeros(3 * screened.page_bytes, dtype=torch.uint8))
    assert sum(t.numel() * t.itemsize for t in pages.tensors) == 3 * screened.page_bytes
    for wrong in ({"dtype": torch.float32}, {"index_dim": 0}):
        with pytest.raises(UnsupportedError, match="bfloat16"):
            dataclasses.replace(screened, **wrong)
