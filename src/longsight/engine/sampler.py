"""Logits to tokens. Each request draws from its own generator, so its answer doesn't depend on its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longsight.engine.request import Request, SamplingParams


def sample(logits: Tensor, requests: Sequence[Request]) -> list[int | None]:
    """One token per row of logits fp32 [R, vocab]; None where a row is not finite and so has no meaning.

    Equal logits go to the lower token id.
    """
    if not requests:
        return []
    best, best_ids = logits.max(-1)  # of equal maxima the first; NaN wins over everything
    tokens: list[int | None] = list(best_ids.tolist())
    for row, finite in enumerate(best.isfinite().tolist()):
        request = requests[row]
        if not finite:
            tokens[row] = None
        elif request.params.temperature > 0:
            tokens[row] = draw(logits[row], request.params, request.rng.random())
    return tokens


def draw(logits: Tensor, params: SamplingParams, uniform: float) -> int:
    """The token at quantile `uniform` (0 to 1) of the distribution that temperature, top_k and top_p leave.

    logits fp32 [vocab], finite maximum. Tokens are ordered by probability, then by id.
    """
    # The maximum is taken off before the division, so that no temperature however small overflows.
    weights = torch.exp((logits - logits.max()).double() / params.temperature)
    probability = weights / weights.sum()
    ids = torch.arange(probability.shape[0])
    if 0 < params.top_k < ids.shape[0]:
        ids = (probability >= probability.topk(params.top_k).values[-1]).nonzero()[:, 0]
    elif params.top_p < 1:
        # Tokens below this bound together weigh less than 1 - top_p: the nucleus is complete without them, and sorting
        # the rest is cheap in a vocabulary of 200,000. The factor leaves room for rounding.
        ids = (probability >= 0.999 * (1 - params.top_p) / ids.shape[0]).nonzero()[:, 0]
    ordered, order = probability[ids].sort(descending=True, stable=True)
    if params.top_k:
        ordered = ordered[: params.top_k]
        ordered = ordered / ordered.sum()
    cumulative = ordered.cumsum(0)
    if params.top_p < 1:
        kept = int((cumulative < params.top_p).sum()) + 1
        cumulative = cumulative[:kept]
    place = int(torch.searchsorted(cumulative, uniform * float(cumulative[-1]), right=True))
    return int(ids[order[min(place, cumulative.shape[0] - 1)]])
