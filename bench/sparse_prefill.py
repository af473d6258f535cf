"""Sparse attention prefill of one layer over whole prompts: ours against our own dense and torch SDPA.

Selection is included. Prompts are read in chunks, as the engine reads them. Index keys and index queries drift from
token to token, as those of real text do; the neighbour overlap that results is measured and reported. At 128K our
dense layer is sampled in chunks spread evenly over the context and integrated (its cost is linear in the position);
torch SDPA is extrapolated by FLOPs. Both are said so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import dense_prefill, main_branch, scan
from bench.compare import outputs_agree
from bench.harness import Row, Session, Target
from bench.main_branch import BF16_LIMIT
from bench.peers import sdpa
from bench.shapes import M3, Shape, overlap, queries, random_pages, smooth, suffix_batch, tokens
from longsight.ops import Backend, Batch, LayerPages

NAME = "sparse_prefill"
TITLE = "sparse attention prefill of one layer (select + attend)"
OVER_SDPA = {1 << 13: Target(9.0), 1 << 15: Target(28.0), 1 << 17: Target(70.0)}
SHARE_OF_FLOP_RATIO = Target(0.95)
RHO, RANK = 0.95, 32
SDPA_WHOLE, SDPA_GROUP = 1 << 13, 1 << 15  # up to here all heads are timed; up to here one group of them
DENSE_WHOLE = 1 << 15  # up to here our dense layer reads the whole prompt
SAMPLED_CHUNKS, SAMPLED_ROWS = 16, 512


@dataclass(frozen=True)
class Layer:
    """One layer's inputs for a prompt of n tokens. Queries of the main branch repeat from chunk to chunk: their values
    do not change the work, and those of a long prompt would be gigabytes.
    """

    shape: Shape
    n: int
    pages: LayerPages
    index_q: Tensor  # [n, H_kv, D_idx]
    q: Tensor  # [chunk, H_q, D]

    @classmethod
    def build(cls, shape: Shape, n: int, chunk: int) -> Layer:
        keys = smooth(n, shape.index_dim, RHO, RANK, seed=5)
        index_q = smooth(n, shape.kv_heads * shape.index_dim, RHO, RANK, seed=6)
        pages = random_pages(shape, n, seed=n, index_keys=keys)
        q = queries(min(chunk, n), shape.heads, shape.dim, seed=7, scale=2.0)
        return cls(shape, n, pages, index_q.view(n, shape.kv_heads, shape.index_dim), q)

    def chunk(self, start: int, stop: int) -> tuple[Tensor, Tensor, Batch]:
        """(q, index_q, batch) of tokens start .. stop - 1."""
        return self.q[: stop - start], self.index_q[start:stop], suffix_batch(stop - start, stop, self.shape.block)

    def starts(self) -> range:
        return range(0, self.n, self.q.shape[0])

    def sparse(self, ops: Backend, start: int, stop: int) -> tuple[Tensor, Tensor]:
        q, index_q, batch = self.chunk(start, stop)
        ids = ops.select_blocks(index_q, self.pages, batch, topk=self.shape.topk)
        return ops.sparse_attention(q, self.pages, batch, ids)[0], ids

    def dense(self, ops: Backend, start: int, stop: int) -> Tensor:
        q, _, batch = self.chunk(start, stop)
        return ops.dense_attention(q, self.pages, batch)[0]

    def whole(self, one: Callable[[int, int], object]) -> None:
        for start in self.starts():
            one(start, min(start + self.q.shape[0], self.n))


def run(session: Session) -> None:
    rate = 0.0
    for n in session.pick((1 << 13, 1 << 15, 1 << 17), (4096,)):
        rate = measure(session, Layer.build(M3, n, chunk=session.pick(4096, 64)), rate)
    session.note(f"index keys and queries: rank {RANK}, drifting with correlation {RHO} from token to token")
    session.note(
        "FLOP ratio: as published, with k x block keys charged to every query (1.88 at 8K, 6.40 at 32K, 16.0 at 128K)"
    )


def measure(session: Session, layer: Layer, sdpa_rate: float) -> float:
    """Add the rows of one length. `sdpa_rate`: SDPA's best FLOP/s so far; returns it with this length's taken in."""
    ops, shape, n = session.backend, layer.shape, layer.n
    found = check(session, layer)
    if session.quick:
        contestants: dict[str, Callable[[], object]] = {
            "sparse": lambda: layer.sparse(ops, n - layer.q.shape[0], n),
            "dense": lambda: layer.dense(ops, n - layer.q.shape[0], n),
        }
    else:
        contestants = {"sparse": lambda: layer.whole(lambda a, b: layer.sparse(ops, a, b))}
        if n <= DENSE_WHOLE:
            contestants["dense"] = lambda: layer.whole(lambda a, b: layer.dense(ops, a, b))
        else:
            contestants["dense"] = lambda: [layer.dense(ops, a, a + SAMPLED_ROWS) for a in sample_starts(n)]
    sparse_repeats = 3 if n <= DENSE_WHOLE else 1
    times = session.race(contestants, repeats=sparse_repeats, warmup=0)
    sparse, dense = times["sparse"].best, times["dense"].best
    how = "measured"
    if not session.quick and n > DENSE_WHOLE:
        # Row cost is linear in the position and the samples are spread evenly, so their mean is the prompt's mean.
        dense *= n / (SAMPLED_CHUNKS * SAMPLED_ROWS)
        how = f"{SAMPLED_CHUNKS} chunks of {SAMPLED_ROWS} rows spread evenly, integrated"

    where = {"tokens": tokens(n), "heads": f"{shape.heads}/{shape.kv_heads}", "overlap": f"{found:.2f}"}
    detail = {"sparse_s": sparse, "dense_s": dense, "dense_how": how, "sparse": times["sparse"].as_dict()}
    published = shape.published_ratio(n)
    detail["flop_ratio"] = published
    session.add(Row(f"sparse over our dense ({how})", dense / sparse, "x", where, detail=detail))
    ratio = dense / sparse / published
    session.add(Row("the same as a share of the FLOP ratio", ratio, "", where, SHARE_OF_FLOP_RATIO, detail))
    if session.quick:
        return sdpa_rate
    seconds, said = torch_seconds(session, layer, sdpa_rate)
    row_detail = {**detail, "sdpa_s": seconds, "sdpa_how": said}
    session.add(Row(f"sparse over torch SDPA ({said})", seconds / sparse, "x", where, OVER_SDPA[n], row_detail))
    return max(sdpa_rate, shape.dense_flops(n, n) / seconds)


def sample_starts(n: int) -> list[int]:
    """First rows of the sampled chunks, whose middles lie evenly over 0 .. n."""
    step = n // SAMPLED_CHUNKS
    return [i * step + (step - SAMPLED_ROWS) // 2 for i in range(SAMPLED_CHUNKS)]


def check(session: Session, layer: Layer) -> float:
    """Compare selection and both outputs of chunks near the start, the middle and the end; returns the neighbour
    overlap.
    """
    ops, size, found = session.backend, layer.q.shape[0], []
    for start in sorted({0, layer.n // 2, layer.n - size}):
        q, index_q, _ = layer.chunk(start, start + size)
        out, ids = layer.sparse(ops, start, start + size)
        found.append(overlap(ids))
        what = f"{tokens(layer.n)} tokens"
        scan.check_rows(session, f"select_blocks, {what}", ids, index_q, layer.pages, start, (0, size - 1))
        main_branch.check_rows(session, f"sparse_attention, {what}", out, q, layer.pages, ids, start, samples=2)
        dense = layer.dense(ops, start, start + size)
        dense_prefill.check_rows(session, f"dense_attention, {what}", dense, q, layer.pages, start, samples=2)
    return found[-1]


def torch_seconds(session: Session, layer: Layer, rate: float) -> tuple[float, str]:
    """Seconds of SDPA for the whole prompt and how they were had: measured, one group times the groups, or by FLOPs."""
    shape, n = layer.shape, layer.n
    if n > SDPA_GROUP:
        return shape.dense_flops(n, n) / rate, "extrapolated by FLOPs from its best rate at 8K and 32K"
    groups = shape.kv_heads if n <= SDPA_WHOLE else 1
    heads = shape.heads // shape.kv_heads * groups
    keys, values = (x[:, :groups] for x in sdpa.plain_kv(layer.pages, torch.arange(n // shape.block)))
    repeated = [layer.q] * (n // layer.q.shape[0])
    q = torch.cat(repeated)[:, :heads].transpose(0, 1)[None].contiguous()
    wide = sdpa.repeat_groups(keys, heads), sdpa.repeat_groups(values, heads)
    rows = layer.q.shape[0]
    first = sdpa.causal(q[:, :, :rows], *(x[:, :, :rows] for x in wide))[0].transpose(0, 1)
    mine = layer.dense(session.backend, 0, rows)[:, :heads]
    what = f"torch SDPA, first {tokens(rows)} of {tokens(n)} tokens, against our dense"
    session.passed(outputs_agree(what, first, mine, BF16_LIMIT))
    times = session.race({"torch SDPA": lambda: sdpa.causal(q, *wide)}, repeats=1, warmup=0)
    said = "measured" if groups == shape.kv_heads else f"one group of heads measured, x {shape.kv_heads}"
    return times["torch SDPA"].best * shape.kv_heads / groups, said
