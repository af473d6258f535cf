"""One decoded token in one layer, cold: scan against a streaming read, sparse against our dense and torch SDPA.

In a model of many layers a layer's index keys have left the caches when its turn comes again. So a round walks several
layers' worth of different memory, more than any cache holds, and reports the time of one layer.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from bench.compare import outputs_agree
from bench.dense_prefill import check_rows
from bench.harness import BenchError, Row, Session, Target
from bench.main_branch import BF16_LIMIT
from bench.main_branch import check_rows as check_sparse
from bench.peers import sdpa
from bench.scan import check_rows as check_selection
from bench.shapes import M3, Shape, queries, random_pages, tokens
from longsight.ops import Batch, LayerPages

NAME = "decode"
TITLE = "one decoded token, one layer, cold caches"
OF_STREAM, OVER_DENSE, OVER_SDPA = Target(0.85), Target(7.5), Target(50.0)


def run(session: Session) -> None:
    pool = session.pick(1 << 20, 1 << 13)
    pages = random_pages(M3, pool, seed=8)
    for n in session.pick((1 << 16, 1 << 20), (1 << 12,)):
        measure(session, M3, pages, pool, n)
    session.note("cold: each call reads other pages, 256 MiB of index keys in all before any is read again")
    session.note("SDPA regrouped: q as [1, 4, 16, 128]; enable_gqa=True is shown but is never the baseline")


def measure(session: Session, shape: Shape, pages: LayerPages, pool: int, n: int) -> None:
    ops = session.backend
    per_layer = n // shape.block
    layers = [layer_batch(i * per_layer, per_layer, n) for i in range(pool // n)]
    q = queries(1, shape.heads, shape.dim, seed=9, scale=2.0)
    index_q = queries(1, shape.kv_heads, shape.index_dim, seed=10)
    keys, values = sdpa.plain_kv(pages, torch.arange(per_layer))

    # Layer 0 is pages 0.., as the row checks assume.
    ids = ops.select_blocks(index_q, pages, layers[0], topk=shape.topk)
    check_selection(session, f"select_blocks, {tokens(n)} tokens", ids, index_q, pages, n - 1, (0,))
    out, _ = ops.sparse_attention(q, pages, layers[0], ids)
    check_sparse(session, f"sparse_attention, {tokens(n)} tokens", out, q, pages, ids, n - 1, samples=1)
    dense, _ = ops.dense_attention(q, pages, layers[0])
    if n <= 1 << 16:
        check_rows(session, f"dense_attention, {tokens(n)} tokens", dense, q, pages, n - 1, samples=1)
    want = sdpa.regrouped_decode(q, keys, values).reshape(dense.shape)
    session.passed(outputs_agree(f"dense_attention, {tokens(n)} tokens, against torch SDPA", dense, want, BF16_LIMIT))

    def scan() -> None:
        for batch in layers:
            ops.select_blocks(index_q, pages, batch, topk=shape.topk)

    def sparse() -> None:
        for batch in layers:
            chosen = ops.select_blocks(index_q, pages, batch, topk=shape.topk)
            ops.sparse_attention(q, pages, batch, chosen)

    def dense_decode() -> None:
        for batch in layers:
            ops.dense_attention(q, pages, batch)

    contestants: dict[str, Callable[[], object]] = {"scan": scan}
    # Memory here drifts by a factor of two within seconds: the scan is compared with the read right beside it.
    if session.backend.NAME != "reference":
        contestants["stream"] = reader(pages)
    contestants |= {"sparse": sparse, "dense": dense_decode}
    # One layer of plain keys and values is larger than the caches, so these need no walk.
    contestants["sdpa regrouped"] = lambda: sdpa.regrouped_decode(q, keys, values)
    times = session.race(contestants, repeats=15)
    walked = {"scan", "sparse", "dense"}
    seconds = {name: t.best / (len(layers) if name in walked else 1) for name, t in times.items()}
    detail: dict[str, object] = {f"{name}_s": value for name, value in seconds.items()}
    detail["layers_walked"] = len(layers)
    if n <= 1 << 16:
        detail["sdpa enable_gqa_s"] = gqa_seconds(session, q, keys, values)
    where = {"tokens": tokens(n), "heads": f"{shape.heads}/{shape.kv_heads}"}
    if "stream" in times:
        size = pool * shape.index_bytes
        pairs = [read / scan for read, scan in zip(times["stream"].samples, times["scan"].samples, strict=True)]
        share = statistics.median(pairs)
        shown = {
            **detail,
            "share_each": sorted(round(pair, 3) for pair in pairs),
            "stream_bytes_per_s": size / times["stream"].median,
            "scan_bytes_per_s": size / times["scan"].median,
        }
        what = "index scan, fraction of a streaming read, median of adjacent pairs"
        session.add(Row(what, share, "", where, OF_STREAM, shown))
    session.add(Row("sparse decode", 1e3 * seconds["sparse"], "ms", where, detail=detail))
    session.add(Row("sparse over our dense", seconds["dense"] / seconds["sparse"], "x", where, OVER_DENSE, detail))
    goal = OVER_SDPA if n == 1 << 16 else None
    ratio = seconds["sdpa regrouped"] / seconds["sparse"]
    session.add(Row("sparse over regrouped torch SDPA", ratio, "x", where, goal, detail))


def layer_batch(first_page: int, pages: int, n: int) -> Batch:
    """One token at the end of a sequence whose pages are first_page .. first_page + pages - 1."""
    return Batch.build([(1, n, range(first_page, first_page + pages))])


def reader(pages: LayerPages) -> Callable[[], object]:
    """A plain sequential read of all index keys."""
    from longsight.ops import kernels

    keys = pages.index_k
    if keys is None:
        raise BenchError("these pages hold no index keys")
    return lambda: kernels.library().ls_stream_read(keys.data_ptr(), keys.nbytes, torch.get_num_threads())


def gqa_seconds(session: Session, q: Tensor, keys: Tensor, values: Tensor) -> float:
    return session.race({"sdpa enable_gqa": lambda: sdpa.gqa_decode(q, keys, values)}, repeats=1, warmup=0)[
        "sdpa enable_gqa"
    ].best
