"""The main branch alone: `sparse_attention` of a prefill chunk for selections of a chosen neighbour overlap."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from bench.compare import outputs_agree
from bench.harness import Row, Session, Target
from bench.shapes import M3, Shape, one_row, overlap, queries, random_pages, suffix_batch, tokens
from longsight.ops import LayerPages, reference

NAME = "main_branch"
TITLE = "sparse attention of a prefill chunk"
BF16_LIMIT = 1e-2  # outputs and probabilities round to bf16, 0.4 % each at most
KEPT = 0.75  # a free block stays chosen from one token to the next with this chance


def run(session: Session) -> None:
    rows = session.pick(4096, 8)
    for n in session.pick((1 << 13, 1 << 17), (4096,)):
        pages = random_pages(M3, n, seed=n)
        q = queries(rows, M3.heads, M3.dim, seed=2, scale=2.0)
        for kind, kept in (("random", 0.0), ("overlapping", KEPT)):
            ids = random_selection(rows, n - rows, M3, kept, seed=3)
            goal = Target(0.72) if kept else Target(0.60) if n == 1 << 17 else None
            measure(session, M3, n, q, pages, ids, kind, goal)
    session.note("overlap: mean share of a token's blocks that the next token chose too")


def measure(
    session: Session, shape: Shape, n: int, q: Tensor, pages: LayerPages, ids: Tensor, kind: str, target: Target | None
) -> None:
    ops, rows = session.backend, q.shape[0]
    batch = suffix_batch(rows, n, shape.block)
    out, _ = ops.sparse_attention(q, pages, batch, ids)
    check_rows(session, f"sparse_attention, {tokens(n)} tokens, {kind}", out, q, pages, ids, n - rows)
    before = session.peak_flops()
    time = session.race({kind: lambda: ops.sparse_attention(q, pages, batch, ids)}, repeats=7)[kind]
    rate = shape.main_flops(rows, n) / time.best
    where = {"tokens": tokens(n), "queries": rows, "selection": kind, "overlap": f"{overlap(ids):.2f}"}
    detail = {**time.as_dict(), "flops_per_s": rate, "us_per_token": 1e6 * time.best / rows}
    if before is not None:
        share, peak = session.fraction_of_peak(rate, before)
        detail["peak_flops_per_s"] = peak
        session.add(Row("main branch, fraction of bf16 peak", share, "", where, target, detail))
    session.add(Row("main branch", rate / 1e9, "GFLOP/s", where, detail=detail))


def check_rows(
    session: Session, what: str, out: Tensor, q: Tensor, pages: LayerPages, ids: Tensor, first: int, samples: int = 3
) -> None:
    """Compare a few rows of a chunk that starts at position `first` with the reference operator on the same ids."""
    rows = q.shape[0]
    for row in sorted({round(i * (rows - 1) / max(samples - 1, 1)) for i in range(samples)}):
        at = slice(row, row + 1)
        want, _ = reference.sparse_attention(q[at], pages, one_row(first + row, pages.layout.block_size), ids[at])
        session.passed(
            outputs_agree(f"{what}, position {first + row}, against the reference", out[at], want, BF16_LIMIT)
        )


def random_selection(rows: int, first: int, shape: Shape, kept: float, seed: int) -> Tensor:
    """Contract-shaped ids int32 [rows, H_kv, k] for positions first.., each free block kept from row to row with chance
    `kept` and drawn anew otherwise."""
    rng = random.Random(seed)
    ids = torch.full((rows, shape.kv_heads, shape.topk), -1, dtype=torch.int32)
    for group in range(shape.kv_heads):
        chosen: set[int] = set()
        for row in range(rows):
            own = (first + row) // shape.block
            wanted = min(shape.topk - 1, own)
            chosen = {block for block in chosen if block < own and rng.random() < kept}
            while len(chosen) < wanted:
                chosen.update(rng.sample(range(own), wanted - len(chosen)))
            ids[row, group, : wanted + 1] = torch.tensor([*sorted(chosen), own], dtype=torch.int32)
    return ids
