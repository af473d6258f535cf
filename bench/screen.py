"""Exact int8 screening: the scan of 8-bit copies first, beside the plain bf16 scan of the same keys."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bench.compare import require
from bench.harness import BenchError, Row, Session, Target
from bench.shapes import M3, Shape, queries, random_pages, smooth, suffix_batch, tokens, with_codes
from longsight.ops import LayerPages

NAME = "screen"
TITLE = "index scan with exact int8 screening, over the bf16 scan"
PREFILL, DECODE = Target(1.5), Target(1.6)
ROWS = 512
SHAPE = Shape(dim=16)  # keys and values play no part


def run(session: Session) -> None:
    if session.backend.NAME != "cpu" or not session.backend.screens(torch.bfloat16, 1 << 20):
        raise BenchError("this machine has no 8-bit dot products (AVX-512 VNNI): its scans are bf16 only")
    # The largest first: its memory is then fresh, in huge pages like an engine's, and not what others left in pieces.
    for n in session.pick((1 << 20, 1 << 18, 1 << 16, 1 << 15), (1 << 12,)):
        measure(session, n)
    if not session.quick:
        measure(session, 1 << 18, drifting=True)
    for line in (
        f"{ROWS} query rows: their keys stay in cache from tile to tile; one row: cold, each call reads other pages",
        "independent noise leaves most blocks to score exactly; drifting keys of low rank, like those of text, fewer",
        "identical ids for every row are required first; ratios are medians of pairs taken side by side",
    ):
        session.note(line)


def measure(session: Session, n: int, *, drifting: bool = False) -> None:
    """Both scans of n keys: for a chunk of rows, and for one row over as much memory as no cache holds."""
    rows = session.pick(ROWS if n <= 1 << 18 else 128, 16)
    pool = max(n, session.pick(1 << 20, n))
    keys = smooth(n, M3.index_dim, 0.98, 32, seed=1) if drifting else None
    pages = with_codes(random_pages(SHAPE, n if drifting else pool, seed=n, kv=False, index_keys=keys))
    width = SHAPE.kv_heads * SHAPE.index_dim
    many = (
        smooth(rows, width, 0.98, 32, seed=2).view(rows, SHAPE.kv_heads, SHAPE.index_dim)
        if drifting
        else queries(rows, SHAPE.kv_heads, SHAPE.index_dim, seed=2)
    )
    compare(session, pages, many, n, PREFILL if n == 1 << 18 and not drifting else None, drifting)
    if not drifting:
        compare(session, pages, many[:1], n, DECODE if n == 1 << 20 else None, drifting)


def compare(session: Session, pages: LayerPages, q: Tensor, n: int, goal: Target | None, drifting: bool) -> None:
    rows, per_layer = q.shape[0], n // SHAPE.block
    layers = [
        suffix_batch(rows, n, SHAPE.block, first_page=first)
        for first in range(0, pages.k.shape[0] if rows == 1 else per_layer, per_layer)
    ]

    def scan() -> list[Tensor]:
        return [session.backend.select_blocks(q, pages, batch, topk=SHAPE.topk) for batch in layers]

    def exact() -> list[Tensor]:
        with screening(False):
            return scan()

    def screened() -> list[Tensor]:
        if pages.screen_pauses is not None:
            pages.screen_pauses.zero_()  # also where it does not pay and would soon be left off
        with screening(True):
            return scan()

    differing = sum(int((a != b).any(-1).sum()) for a, b in zip(exact(), screened(), strict=True))
    what = f"{tokens(n)}, {rows} rows: (row, group)s whose ids differ"
    session.passed(require(what, differing, 0))
    times = session.race({"bf16": exact, "int8 first": screened}, repeats=41 if rows == 1 else 7)
    ratio = statistics.median(a / b for a, b in zip(times["bf16"].samples, times["int8 first"].samples, strict=True))
    detail = {name: t.as_dict() for name, t in times.items()} | {"scans_per_sample": len(layers)}
    where = {"tokens": tokens(n), "queries": rows, "keys": "drifting" if drifting else "noise"}
    session.add(Row("int8 screening over the bf16 scan", ratio, "x", where, goal, detail))


@contextmanager
def screening(on: bool) -> Iterator[None]:
    from longsight.ops import cpu

    before = cpu.screen_from
    cpu.screen_from = cpu.ScreenFrom(0, 0) if on else cpu.ScreenFrom(1 << 40, 1 << 40)
    try:
        yield
    finally:
        cpu.screen_from = before
