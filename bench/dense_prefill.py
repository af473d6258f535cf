"""Causal attention of a whole prompt in a full-attention layer: ours against torch's SDPA and against the machine."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.compare import outputs_agree
from bench.harness import Row, Session, Target
from bench.main_branch import BF16_LIMIT
from bench.peers import sdpa
from bench.shapes import M3, Shape, one_row, queries, random_pages, suffix_batch, tokens
from longsight.ops import LayerPages, reference

NAME = "dense_prefill"
TITLE = "dense causal prefill of one layer"
OF_PEAK, OVER_SDPA = Target(0.78), Target(4.0)


def run(session: Session) -> None:
    whole_prompt(session, M3, session.pick(1 << 13, 512))
    if not session.quick:
        last_chunk(session, M3, 1 << 17, rows=512)


def whole_prompt(session: Session, shape: Shape, n: int) -> None:
    """All n tokens as one call, beside SDPA with the keys and values of each group already repeated for its heads."""
    ops = session.backend
    pages, q = random_pages(shape, n, seed=n), queries(n, shape.heads, shape.dim, seed=4, scale=2.0)
    batch = suffix_batch(n, n, shape.block)
    keys, values = sdpa.plain_kv(pages, torch.arange(n // shape.block))
    wide = sdpa.repeat_groups(keys, shape.heads), sdpa.repeat_groups(values, shape.heads)
    rows = q.transpose(0, 1)[None].contiguous()

    out, _ = ops.dense_attention(q, pages, batch)
    want = sdpa.causal(rows, *wide)[0].transpose(0, 1)
    session.passed(outputs_agree(f"dense_attention, {tokens(n)} tokens, against torch SDPA", out, want, BF16_LIMIT))
    check_rows(session, f"dense_attention, {tokens(n)} tokens", out, q, pages, 0)

    before = session.peak_flops()
    contestants = {
        "ours": lambda: ops.dense_attention(q, pages, batch),
        "sdpa": lambda: sdpa.causal(rows, *wide),
        "sdpa enable_gqa": lambda: sdpa.causal(rows, keys, values),
    }
    times = session.race(contestants, repeats=3, warmup=0)
    flops = shape.dense_flops(n, n)
    detail = {name: {**t.as_dict(), "flops_per_s": flops / t.best} for name, t in times.items()}
    where = {"tokens": tokens(n), "heads": f"{shape.heads}/{shape.kv_heads}"}
    report_peak(session, before, flops / times["ours"].best, where, detail)
    torch_best = min(times["sdpa"].best, times["sdpa enable_gqa"].best)
    ratio = torch_best / times["ours"].best
    session.add(Row("dense prefill over torch SDPA (its faster form)", ratio, "x", where, OVER_SDPA, detail))


def last_chunk(session: Session, shape: Shape, n: int, rows: int) -> None:
    """The last `rows` queries of a long prompt, as an engine's chunk sees them."""
    ops = session.backend
    pages, q = random_pages(shape, n, seed=n), queries(rows, shape.heads, shape.dim, seed=4, scale=2.0)
    batch = suffix_batch(rows, n, shape.block)
    out, _ = ops.dense_attention(q, pages, batch)
    check_rows(session, f"dense_attention, {tokens(n)} tokens, last chunk", out, q, pages, n - rows, samples=2)
    before = session.peak_flops()
    time = session.race({"ours": lambda: ops.dense_attention(q, pages, batch)}, repeats=3)["ours"]
    where = {"tokens": tokens(n), "queries": rows, "heads": f"{shape.heads}/{shape.kv_heads}"}
    report_peak(session, before, shape.dense_flops(rows, n) / time.best, where, time.as_dict())


def report_peak(
    session: Session, before: float | None, rate: float, where: Mapping[str, object], detail: Mapping[str, object]
) -> None:
    if before is not None:
        share, peak = session.fraction_of_peak(rate, before)
        shown = {**detail, "flops_per_s": rate, "peak_flops_per_s": peak}
        session.add(Row("dense prefill, fraction of bf16 peak", share, "", where, OF_PEAK, shown))


def check_rows(
    session: Session, what: str, out: Tensor, q: Tensor, pages: LayerPages, first: int, samples: int = 3
) -> None:
    """Compare a few rows of a chunk that starts at position `first` with the reference operator."""
    rows = q.shape[0]
    for row in sorted({round(i * (rows - 1) / max(samples - 1, 1)) for i in range(samples)}):
        at = slice(row, row + 1)
        want, _ = reference.dense_attention(q[at], pages, one_row(first + row, pages.layout.block_size))
        session.passed(
            outputs_agree(f"{what}, position {first + row}, against the reference", out[at], want, BF16_LIMIT)
        )
