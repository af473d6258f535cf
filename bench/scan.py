"""The index scan with exact top-k: `select_blocks` for a chunk of queries at the end of a long context."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.compare import block_maxima, require, selection_agrees
from bench.harness import Row, Session, Target
from bench.shapes import M3, Shape, queries, random_pages, suffix_batch, tokens
from longsight.ops import LayerPages

NAME = "scan"
TITLE = "index scan and exact top-k"
# The rounding of an fp32 sum of 128 products whose terms add up to about 11 * 11 in size, with room to spare.
EPSILON = 1e-3
TARGET = Target(0.90)


def run(session: Session) -> None:
    for n in session.pick((1 << 16, 1 << 18), (4096,)):
        measure(session, M3, n, rows=session.pick(512, 16))
    session.note("peak: the bf16 dot-product instruction on all threads, before and after; the larger is used")
    session.note(
        "torch: the same in three calls (matmul, amax, topk), whose scores round to bf16, so its ids are not exact"
    )


def measure(session: Session, shape: Shape, n: int, rows: int) -> None:
    ops = session.backend
    pages = random_pages(shape, n, seed=n, kv=False)
    index_q = queries(rows, shape.kv_heads, shape.index_dim, seed=1)
    batch = suffix_batch(rows, n, shape.block)
    keys = pages.index_keys(torch.arange(n // shape.block)).flatten(0, 1)  # [n, D_idx]

    ids = ops.select_blocks(index_q, pages, batch, topk=shape.topk)
    for row in (0, rows // 2, rows - 1):
        scores = block_maxima(index_q[row], keys, n - rows + row, shape.block)
        what = f"select_blocks, {tokens(n)} tokens, row {row}, against exact scores"
        session.passed(selection_agrees(what, ids[row], scores, shape.topk, EPSILON))
    theirs = torch_select(index_q, keys, n - rows, shape)
    differing = 1 - (theirs[..., None] == ids[..., None, :]).any(-1).float().mean().item()
    session.passed(require(f"torch's choice (bf16 scores), {tokens(n)} tokens: share of other ids", differing, 0.05))

    before = session.peak_flops()
    contestants = {
        "ours": lambda: ops.select_blocks(index_q, pages, batch, topk=shape.topk),
        "torch": lambda: torch_select(index_q, keys, n - rows, shape),
    }
    times = session.race(contestants, repeats=9)
    flops = shape.scan_flops(rows, n)
    where = {"tokens": tokens(n), "queries": rows, "index heads": shape.kv_heads, "index dim": shape.index_dim}
    detail = {name: {**t.as_dict(), "flops_per_s": flops / t.best} for name, t in times.items()}
    if before is not None:
        share, peak = session.fraction_of_peak(flops / times["ours"].best, before)
        row_detail = {**detail, "peak_flops_per_s": peak}
        session.add(Row("scan + top-k, fraction of bf16 peak", share, "", where, TARGET, row_detail))
    session.add(Row("scan + top-k over torch", times["torch"].best / times["ours"].best, "x", where, detail=detail))


def torch_select(index_q: Tensor, keys: Tensor, first: int, shape: Shape) -> Tensor:
    """Block choice in torch, 64 rows at a time. index_q [T, H_kv, D_idx], keys [n, D_idx] -> ids [T, H_kv, k],
    unordered.
    """
    rows, groups, _ = index_q.shape
    position = torch.arange(keys.shape[0])
    chosen = []
    for start in range(0, rows, 64):
        part = index_q[start : start + 64]
        scores = (part.flatten(0, 1) @ keys.T).view(part.shape[0], groups, -1)  # bf16 [t, H_kv, n]
        own = torch.arange(first + start, first + start + part.shape[0])
        tail = first + start  # everything before the first row of the part is visible to all its rows
        scores[..., tail:].masked_fill_(position[None, None, tail:] > own[:, None, None], -torch.inf)
        blocks = scores.unflatten(-1, (-1, shape.block)).amax(-1)
        local = (own // shape.block)[:, None, None].expand(-1, groups, 1)
        chosen.append(blocks.scatter_(-1, local, torch.inf).topk(min(shape.topk, blocks.shape[-1]), dim=-1).indices)
    return torch.cat(chosen)


def check_rows(
    session: Session, what: str, ids: Tensor, index_q: Tensor, pages: LayerPages, first: int, rows: tuple[int, ...]
) -> None:
    """Compare the selection of a few rows of a chunk that starts at position `first` with exact scores."""
    block, topk = pages.layout.block_size, ids.shape[-1]
    for row in rows:
        visible = torch.arange((first + row) // block + 1)
        keys = pages.index_keys(visible).flatten(0, 1)
        scores = block_maxima(index_q[row], keys, first + row, block)
        session.passed(selection_agrees(f"{what}, position {first + row}", ids[row], scores, topk, EPSILON))
