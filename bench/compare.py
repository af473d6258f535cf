"""Comparisons that must pass before anything is timed; each returns a Check or raises MismatchError.

Legend: T rows, H query heads, H_kv groups, D head dim, n_b blocks, k blocks kept.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import BenchError, Check


class MismatchError(BenchError):
    """An output that differs from its reference by more than the stated limit: nothing is timed."""


def require(what: str, error: float, limit: float) -> Check:
    """A Check if `error` is a number no larger than `limit`."""
    if math.isnan(error) or error > limit:
        raise MismatchError(f"{what}: error {error:.3g} is over the limit {limit:.3g}; not timed")
    return Check(what, float(error), float(limit))


def outputs_agree(what: str, got: Tensor, want: Tensor, limit: float) -> Check:
    """Root-mean-square difference over the rms of `want`, all elements finite and shapes equal."""
    if got.shape != want.shape:
        raise MismatchError(f"{what}: shape {list(got.shape)} against {list(want.shape)}")
    a, b = got.double(), want.double()
    if not (a.isfinite().all() and b.isfinite().all()):
        raise MismatchError(f"{what}: an output is not finite")
    if b.square().mean() == 0:
        raise MismatchError(f"{what}: the reference is all zero, which proves nothing")
    return require(what, ((a - b).square().mean() / b.square().mean()).sqrt().item(), limit)


def block_maxima(index_q: Tensor, keys: Tensor, position: int, block: int) -> Tensor:
    """Exact block scores of one row: index_q [H_kv, D], plain keys [n, D] with n > position -> fp64 [H_kv, n_b].

    Products of bf16 values summed in fp64: the truth that selections are judged by.
    """
    visible = keys[: position + 1].double()
    scores = index_q.double() @ visible.T
    own = position // block
    padded = F.pad(scores, (0, (own + 1) * block - position - 1), value=-math.inf)
    return padded.view(-1, own + 1, block).amax(-1)


def selection_agrees(what: str, ids: Tensor, scores: Tensor, topk: int, epsilon: float) -> Check:
    """One row's ids int32 [H_kv, k] obey the contract for exact scores [H_kv, n_b], whose last block is the row's own.

    Ids ascend, end in -1 padding, hold the own block and min(k, n_b) blocks in all. No block left out may beat the
    weakest free block chosen by more than `epsilon`, the rounding of an fp32 sum; the error reported is the largest
    such gap.
    """
    groups, blocks = scores.shape
    expected = min(topk, blocks)
    worst = 0.0
    for group in range(groups):
        row = ids[group].tolist()
        chosen = [b for b in row if b >= 0]
        if len(chosen) != expected or row[expected:] != [-1] * (len(row) - expected):
            raise MismatchError(f"{what}: group {group} chose {row}, expected {expected} ids then -1")
        if any(a >= b for a, b in itertools.pairwise(chosen)) or chosen[-1] != blocks - 1:
            raise MismatchError(
                f"{what}: group {group} chose {row}: ids must ascend and end in the own block {blocks - 1}"
            )
        left_out = torch.ones(blocks, dtype=torch.bool)
        left_out[chosen] = False
        if left_out.any() and expected > 1:
            weakest = scores[group, chosen[:-1]].min()
            worst = max(worst, (scores[group][left_out].max() - weakest).item())
    return require(what, worst, epsilon)
