"""Logits to tokens. Each request draws from its own generator, so its answer does not depend on its neighbours."""

from __future__ import annotations

import math
import random
from array import array
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from longsight.engine.params import SamplingParams
from longsight.ops import LongsightError


class Matcher(Protocol):
    """An answer's grammar on its way through the answer. complete: nothing can follow."""

    complete: bool

    def mask(self) -> Tensor:
        """Bool [vocab]: which tokens may come next."""

    def accept(self, token: int) -> None: ...


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability, and the likeliest tokens in its place, best first. Before any adjustment."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Sampled(NamedTuple):
    token: int
    logprob: TokenLogprob | None = None


class SamplingState:
    """What one request's sampling remembers: random numbers drawn, tokens seen, where its grammar stands.

    stop_ids: tokens that end the answer, which min_tokens holds back.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: array[int],
        *,
        stop_ids: Collection[int] = (),
        matcher: Matcher | None = None,
    ) -> None:
        self.params, self.matcher = params, matcher
        # The likeliest token that is not suppressed, whatever came before; and nothing else is asked about it.
        self.is_plain = params.temperature == 0 and not params.adjusts_logits
        self.is_bare = self.is_plain and params.logprobs is None
        self.generated = 0
        self.suppressed = frozenset(params.suppress_tokens)
        self._suppressed_ids = torch.tensor(sorted(self.suppressed), dtype=torch.long)
        # Python promises that a seeded Random.random() repeats across versions and machines.
        self._random = random.Random(params.seed)
        self._stop_ids = torch.tensor(sorted(stop_ids), dtype=torch.long)
        self._counts: Counter[int] = Counter()
        self._prompt = torch.empty(0, dtype=torch.long)
        if params.repetition_penalty != 1:
            self._prompt = torch.from_numpy(np.unique(np.asarray(prompt)).astype(np.int64))
        bias = params.logit_bias or {}
        self._bias_ids = torch.tensor(list(bias), dtype=torch.long)
        self._bias = torch.tensor(list(bias.values()), dtype=torch.float32)

    def choose(self, logits: Tensor) -> int:
        """The next token by fp32 logits [vocab]. Changes nothing but the random generator."""
        if self.params.adjusts_logits or self.suppressed:
            logits = self._adjusted(logits)
        if self.params.temperature == 0:
            return int(logits.argmax())
        return draw(logits, self.params, self._random.random())

    def advance(self, token: int) -> None:
        """`token` has become part of the answer."""
        if self.is_plain:
            return
        self.generated += 1
        self._counts[token] += 1
        if self.matcher is not None:
            self.matcher.accept(token)

    def _adjusted(self, logits: Tensor) -> Tensor:
        params, logits = self.params, logits.clone()
        seen = torch.tensor(list(self._counts), dtype=torch.long)
        if params.repetition_penalty != 1:
            ids = torch.cat((self._prompt, seen)).unique()
            values = logits[ids]
            logits[ids] = torch.where(
                values > 0, values / params.repetition_penalty, values * params.repetition_penalty
            )
        if (params.presence_penalty or params.frequency_penalty) and len(seen):
            counts = torch.tensor(list(self._counts.values()), dtype=torch.float32)
            logits[seen] -= params.presence_penalty + params.frequency_penalty * counts
        if len(self._bias_ids):
            logits[self._bias_ids] += self._bias
        if self.matcher is not None:
            allowed = self.matcher.mask()[: len(logits)]
            logits[: len(allowed)].masked_fill_(~allowed, -torch.inf)
            logits[len(allowed) :] = -torch.inf
        if self.suppressed:
            logits = _without(logits, self._suppressed_ids)
        if self.generated < params.min_tokens:
            logits = _without(logits, self._stop_ids)
        return logits


def _without(logits: Tensor, ids: Tensor) -> Tensor:
    """Logits without those tokens, unless a grammar allows nothing else: a finished one allows only the end."""
    rest = logits.index_fill(0, ids, -torch.inf)
    return rest if bool(rest.isfinite().any()) else logits


class Logits(NamedTuple):
    """What a step leaves to be sampled from: rows [R, vocab] in the model's dtype, and of each the place int32 [R] and
    value fp32 [R] of its largest (of equal ones the first; a NaN counts as larger than all).

    The memory may belong to the step, and be overwritten by the next.
    """

    rows: Tensor
    likeliest: Tensor
    best: Tensor


class Rows(NamedTuple):
    """One request's rows of the logits: row `first` follows its last token, each further row one drafted token more."""

    state: SamplingState
    first: int
    drafts: Sequence[int] = ()


def sample(logits: Logits, entries: Sequence[Rows]) -> list[list[Sampled] | Exception]:
    """The new tokens of each entry, one to 1 + len(drafts) of them, or why there are none: what is wrong with one
    request's row or grammar does not touch the others.

    Equal logits go to the lower token id. A row is sampled as it would be without drafts, with the same random number;
    the next row counts only if the token is the drafted one. So drafts change no answer.
    """
    if not entries:
        return []
    likeliest, best = logits.likeliest.tolist(), logits.best.tolist()
    results: list[list[Sampled] | Exception] = []
    for state, first, drafts in entries:
        token = likeliest[first]
        if state.is_bare and not drafts and math.isfinite(best[first]) and token not in state.suppressed:
            results.append([Sampled(token)])  # most rows of most steps
            continue
        try:
            results.append(_verify(logits.rows, likeliest, best, Rows(state, first, drafts)))
        except (LongsightError, FloatingPointError) as error:
            results.append(error)
    return results


def _verify(rows: Tensor, likeliest: Sequence[int], best: Sequence[float], entry: Rows) -> list[Sampled]:
    state, params, tokens = entry.state, entry.state.params, list[Sampled]()
    for row in range(entry.first, entry.first + len(entry.drafts) + 1):
        if not math.isfinite(best[row]):
            raise FloatingPointError("the model's logits are not finite")
        token = likeliest[row]
        if not state.is_plain or token in state.suppressed:
            token = state.choose(rows[row].float())
        asked = params.logprobs
        tokens.append(Sampled(token, None if asked is None else logprob(rows[row], token, asked)))
        state.advance(token)
        drafted = row - entry.first
        if drafted == len(entry.drafts) or entry.drafts[drafted] != token:
            break
    return tokens


def logprob(logits: Tensor, token: int, top: int) -> TokenLogprob:
    """log_softmax of one row, for one token and the `top` likeliest (equal ones in order of their ids)."""
    values = logits.double().log_softmax(-1)
    best: list[tuple[int, float]] = []
    if top:
        # Everything at least as likely as the last place, so that ties are settled by id and not by topk.
        ids = (values >= values.topk(min(top, len(values))).values[-1]).nonzero()[:, 0]
        order = values[ids].sort(dim=-1, descending=True, stable=True).indices[:top]
        best = [(int(i), float(values[i])) for i in ids[order]]
    return TokenLogprob(token, float(values[token]), tuple(best))


def draw(logits: Tensor, params: SamplingParams, uniform: float) -> int:
    """The token at quantile `uniform` (0 to 1) of the distribution that temperature, top_k, min_p and top_p leave.

    logits fp32 [vocab], finite maximum. Tokens are ordered by probability, then by id.
    """
    # The maximum is taken off before the division, so that no temperature however small overflows.
    weights = torch.exp((logits - logits.max()).double() / params.temperature)
    probability = weights / weights.sum()
    ids = torch.arange(probability.shape[0])
    if 0 < params.top_k < ids.shape[0]:
        ids = (probability >= probability.topk(params.top_k).values[-1]).nonzero()[:, 0]
    elif params.min_p > 0:
        ids = (probability >= params.min_p * probability.max()).nonzero()[:, 0]
    elif params.top_p < 1:
        # Tokens below this bound together weigh less than 1 - top_p: the nucleus is complete without them, and sorting
        # the rest is cheap in a vocabulary of 200,000. The factor leaves room for rounding.
        ids = (probability >= 0.999 * (1 - params.top_p) / ids.shape[0]).nonzero()[:, 0]
    ordered, order = probability[ids].sort(descending=True, stable=True)
    if params.top_k:
        ordered = ordered[: params.top_k]
    if params.min_p > 0:
        ordered = ordered[ordered >= params.min_p * ordered[0]]
    if params.top_k or params.min_p > 0:
        ordered = ordered / ordered.sum()
    cumulative = ordered.cumsum(0)
    if params.top_p < 1:
        kept = int((cumulative < params.top_p).sum()) + 1
        cumulative = cumulative[:kept]
    place = int(torch.searchsorted(cumulative, uniform * float(cumulative[-1]), right=True))
    return int(ids[order[min(place, cumulative.shape[0] - 1)]])
