"""One layer's attention in training, forward and backward: ours (selection and sparse attention) against our own dense
operator and torch SDPA, all causal over one document.

SDPA runs on one group of query heads, times the groups; it takes the faster of its two forms for grouped heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.compare import outputs_agree
from bench.harness import BenchError, Row, Session, Target
from bench.main_branch import BF16_LIMIT
from bench.peers import sdpa
from bench.shapes import M3, Shape, overlap, smooth, tokens
from bench.sparse_prefill import RANK, RHO
from longsight.ops import cost
from longsight.ops.training import Documents, choose
from longsight.ops.training.backends import TrainingBackend

NAME = "training"
TITLE = "attention of one layer in training, forward and backward"
SHARE_OF_FLOP_RATIO = Target(0.8)
FP32_LIMIT = 1e-5
CHECKED = 2560  # tokens of the comparison with SDPA under a mask: more than k blocks, and no more memory than it needs


@dataclass(frozen=True)
class Layer:
    """Leaf tensors of one layer and the gradient that comes back, for one document of n tokens."""

    shape: Shape
    n: int
    q: Tensor  # [n, H_q, D]
    k: Tensor  # [n, H_kv, D]
    v: Tensor
    index_q: Tensor  # [n, H_kv, D_idx]
    index_k: Tensor  # [n, D_idx]
    grad: Tensor  # [n, H_q, D]

    @classmethod
    def build(cls, shape: Shape, n: int, dtype: torch.dtype) -> Layer:
        g = torch.Generator().manual_seed(n)

        def draw(heads: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(n, heads, shape.dim, generator=g) * scale).to(dtype)

        q, k, v = (
            draw(h, s).requires_grad_() for h, s in ((shape.heads, 2.0), (shape.kv_heads, 1), (shape.kv_heads, 1))
        )
        index_q = smooth(n, shape.kv_heads * shape.index_dim, RHO, RANK, seed=6).to(dtype)
        index_k = smooth(n, shape.index_dim, RHO, RANK, seed=5).to(dtype)
        return cls(shape, n, q, k, v, index_q.view(n, shape.kv_heads, -1), index_k, draw(shape.heads))

    @property
    def docs(self) -> Documents:
        return Documents.of_lengths([self.n])

    def select(self, ops: TrainingBackend) -> Tensor:
        return ops.select_blocks(
            self.index_q, self.index_k, self.docs, block_size=self.shape.block, topk=self.shape.topk
        )

    def sparse(self, ops: TrainingBackend) -> list[Tensor]:
        """Output and gradients of q, k, v, selection included."""
        ids = self.select(ops)
        out, _ = ops.sparse_attention(self.q, self.k, self.v, ids, self.docs, block_size=self.shape.block)
        return [out.detach(), *torch.autograd.grad(out, (self.q, self.k, self.v), self.grad)]

    def dense(self, ops: TrainingBackend) -> list[Tensor]:
        out, _ = ops.dense_attention(self.q, self.k, self.v, self.docs)
        return [out.detach(), *torch.autograd.grad(out, (self.q, self.k, self.v), self.grad)]

    def divergence(self, ops: TrainingBackend, lse: Tensor, ids: Tensor) -> Tensor:
        index_q = self.index_q.detach().requires_grad_()
        kl = ops.sparse_kl(index_q, self.index_k, self.q, self.k, lse, ids, self.docs, block_size=self.shape.block)
        kl.backward()
        return kl.detach()

    def group(self) -> Layer:
        """The first group's heads alone."""
        size = self.shape.heads // self.shape.kv_heads
        shape = replace(self.shape, heads=size, kv_heads=1)
        q, k, v = (
            x.detach()[:, :h].contiguous().requires_grad_() for x, h in ((self.q, size), (self.k, 1), (self.v, 1))
        )
        index_q = self.index_q[:, :1].contiguous()
        return replace(self, shape=shape, q=q, k=k, v=v, index_q=index_q, grad=self.grad[:, :size])

    def torch(
        self, *, expanded: bool, mask: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Callable[[], list[Tensor]]:
        """SDPA forward and backward; its tensors are laid out (and heads repeated) outside what is timed.

        mask: bool [1, H_q, n, n] instead of the causal one.
        """
        q, k, v, grad = (
            x.detach().to(dtype or x.dtype).transpose(0, 1)[None].contiguous()
            for x in (self.q, self.k, self.v, self.grad)
        )
        if expanded:
            k, v = (sdpa.repeat_groups(x, self.shape.heads).contiguous() for x in (k, v))
        leaves = (q.requires_grad_(), k.requires_grad_(), v.requires_grad_())

        def run() -> list[Tensor]:
            out = sdpa.causal(*leaves) if mask is None else sdpa.masked(*leaves, mask)
            found = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
            return [x[0].transpose(0, 1) for x in found]

        return run


def run(session: Session) -> None:
    ops, reason = choose()
    if ops.NAME != "cpu" and not session.quick:
        raise BenchError(f"no compiled training kernels to measure: {reason}")
    one_group = replace(M3, heads=M3.heads // M3.kv_heads, kv_heads=1)
    for dtype, limit in ((torch.bfloat16, BF16_LIMIT), (torch.float32, FP32_LIMIT)):
        check(session, ops, Layer.build(one_group, session.pick(CHECKED, 2304), dtype), limit)
    measure(session, ops, Layer.build(session.pick(M3, one_group), session.pick(1 << 14, 2304), torch.bfloat16))
    if not session.quick:
        measure(session, ops, Layer.build(one_group, 1 << 13, torch.float32))
    session.note(f"index keys and queries: rank {RANK}, drifting with correlation {RHO} from token to token")
    session.note(
        "FLOP ratio: as published, k x block keys charged to every query; a backward pass is 2.5 forward passes"
    )


def check(session: Session, ops: TrainingBackend, layer: Layer, limit: float) -> None:
    """Outputs and gradients against SDPA in fp32 on the same inputs: sparse under its choice as a mask."""
    shape, n, kind = layer.shape, layer.n, str(layer.q.dtype).removeprefix("torch.")
    ids = layer.select(ops)
    chosen = torch.zeros(n, shape.kv_heads, -(-n // shape.block) + 1, dtype=torch.bool)
    chosen.scatter_(2, torch.where(ids < 0, chosen.shape[2] - 1, ids).long(), True)
    mask = chosen[..., :-1].repeat_interleave(shape.block, 2)[..., :n].transpose(0, 1).tril()
    if bool(mask.all()):
        raise BenchError("every block was chosen: sparse equals dense, which proves nothing")
    for what, got, want in (
        ("sparse", layer.sparse(ops), layer.torch(expanded=True, mask=mask[None], dtype=torch.float32)()),
        ("dense", layer.dense(ops), layer.torch(expanded=True, dtype=torch.float32)()),
    ):
        for name, x, y in zip(("output", "dq", "dk", "dv"), got, want, strict=True):
            y = y if y.shape == x.shape else y.unflatten(1, (shape.kv_heads, -1)).sum(2)
            session.passed(outputs_agree(f"{what} {name}, {tokens(n)} tokens, {kind}, against torch SDPA", x, y, limit))


def measure(session: Session, ops: TrainingBackend, layer: Layer) -> None:
    shape, n, one = layer.shape, layer.n, layer.group()
    ids = layer.select(ops)
    with torch.no_grad():
        _, lse = ops.sparse_attention(layer.q, layer.k, layer.v, ids, layer.docs, block_size=shape.block)
    forms = {"repeated heads": one.torch(expanded=True), "enable_gqa": one.torch(expanded=False)}
    form = faster_form(session, one)
    before = session.peak_flops()
    ours: dict[str, Callable[[], object]] = {
        "sparse": lambda: layer.sparse(ops),
        "selection": lambda: layer.select(ops),
        "forward": lambda: ops.sparse_attention(
            layer.q.detach(), layer.k.detach(), layer.v.detach(), ids, layer.docs, block_size=shape.block
        ),
        "divergence": lambda: layer.divergence(ops, lse, ids),
    }
    times = session.race({**ours, "dense": lambda: layer.dense(ops), "sdpa": forms[form]}, repeats=2, warmup=0)
    best = {name: t.best for name, t in times.items()}
    best["sdpa"] *= shape.kv_heads
    best["backward"] = best["sparse"] - best["selection"] - best["forward"]

    exact = cost.AttentionShape(shape.heads, shape.kv_heads, shape.dim, shape.index_dim, shape.block, shape.topk)
    main = cost.exact_main_prefill_flops(exact, n)
    flops = {
        "sparse": cost.TRAINING_OVER_FORWARD * main + cost.exact_index_prefill_flops(exact, n),
        "dense": cost.TRAINING_OVER_FORWARD * cost.exact_dense_prefill_flops(exact, n),
        "forward": main,
        "backward": cost.BACKWARD_OVER_FORWARD * main,
        "divergence": cost.divergence_flops(exact, n),
    }
    kind = str(layer.q.dtype).removeprefix("torch.")
    where = {
        "tokens": tokens(n),
        "heads": f"{shape.heads}/{shape.kv_heads}",
        "dtype": kind,
        "overlap": f"{overlap(ids):.2f}",
    }
    published = cost.training_flop_ratio(exact, n)
    detail = {
        **{name: t.as_dict() for name, t in times.items()},
        "sdpa_form": form,
        "sdpa_how": f"one group of heads, x {shape.kv_heads}",
        "flop_ratio": published,
        "exact_flop_ratio": flops["dense"] / flops["sparse"],
    }
    over = best["sdpa"] / best["sparse"]
    session.add(Row("sparse over torch SDPA, forward and backward", over, "x", where, detail=detail))
    session.add(
        Row(
            f"the same over the FLOP ratio of {published:.2f}", over / published, "", where, SHARE_OF_FLOP_RATIO, detail
        )
    )
    session.add(Row("sparse over our dense, forward and backward", best["dense"] / best["sparse"], "x", where))
    if before is not None and layer.q.dtype == torch.bfloat16:
        for name, count in flops.items():
            share, peak = session.fraction_of_peak(count / best[name], before)
            rate = {"seconds": best[name], "flops_per_s": count / best[name], "peak_flops_per_s": peak}
            session.add(Row(f"{name}, fraction of bf16 peak", share, "", where, detail=rate))


def faster_form(session: Session, layer: Layer) -> str:
    """Which of SDPA's forms is faster at 2,048 of the layer's tokens."""
    n = min(layer.n, 2048)
    q, k, v = (x.detach()[:n].requires_grad_() for x in (layer.q, layer.k, layer.v))
    short = replace(layer, n=n, q=q, k=k, v=v, grad=layer.grad[:n])
    forms = {"repeated heads": short.torch(expanded=True), "enable_gqa": short.torch(expanded=False)}
    times = session.race(forms, repeats=2)
    return min(times, key=lambda name: times[name].best)
