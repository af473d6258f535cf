"""Texts read through pages in chunks, with the likelihood of what they say: memory does not grow with their length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from longsight.evals.errors import EvalError
from longsight.evals.intervals import Estimate, mean
from longsight.evals.sample import Sample
from longsight.model import Model
from longsight.ops import Batch

LOGIT_BYTES = 64 * 2**20  # of fp32 logits at a time
MAX_CHUNK = 2048


class Reader:
    """One sequence in pages of its own, `capacity` tokens at most.

    length: tokens read. Setting it back forgets what came after: those slots are written again, and no row looks
    beyond its own position.
    """

    def __init__(self, model: Model, capacity: int) -> None:
        self.model, self.length = model, 0
        pages = -(-capacity // model.config.block_size)
        self._cache = model.allocate_cache(pages)
        self._table = torch.arange(pages, dtype=torch.int32)[None]

    def read(self, tokens: Tensor, logit_rows: Tensor | None = None) -> Tensor:
        """tokens int64 [T] after what was read -> logits fp32 [R, V] of those rows, None for all."""
        count = tokens.shape[0]
        lengths = torch.tensor([self.length + count], dtype=torch.int32)
        batch = Batch(torch.tensor([0, count], dtype=torch.int32), lengths, self._table)
        logits = self.model.forward(tokens, batch, self._cache, logit_rows=logit_rows)
        self.length += count
        return logits

    def skim(self, tokens: Tensor, chunk: int = MAX_CHUNK) -> None:
        """Read without logits."""
        for part in tokens.split(chunk):
            self.read(part, torch.empty(0, dtype=torch.int64))

    def losses(self, tokens: Tensor, after: int) -> Tensor:
        """Read `tokens` [T] -> fp32 [T - after]: -log p, in nats, of tokens[after:], given what is before each.

        after: at least 1; the first token is given, not predicted.
        """
        rows = max(min(LOGIT_BYTES // (4 * self.model.config.vocab_size), MAX_CHUNK), 1)
        first = after - 1  # the row whose logits speak of tokens[after]
        self.skim(tokens[:first])
        parts = []
        for start in range(first, tokens.shape[0], rows):
            logits = self.read(tokens[start : start + rows])
            targets = tokens[start + 1 : start + rows + 1]
            parts.append(torch.nn.functional.cross_entropy(logits[: targets.shape[0]], targets, reduction="none"))
        return torch.cat(parts) if parts else torch.empty(0)


def answer_log_likelihoods(model: Model, sample: Sample) -> list[float]:
    """For each question the log-probability (nats) of its likeliest accepted answer, given the context once read."""
    longest = sample.length
    reader = Reader(model, longest)
    context = torch.tensor(sample.context, dtype=torch.int64)
    reader.skim(context)
    found = []
    for question in sample.questions:
        best = -np.inf
        for answer in question.answers:
            reader.length = context.shape[0]
            tokens = torch.tensor([*question.tokens, *answer], dtype=torch.int64)
            best = max(best, -float(reader.losses(tokens, len(question.tokens)).sum()))
        found.append(best)
    return found


@dataclass(frozen=True)
class PositionLoss:
    """Loss in nats of tokens at positions first .. last - 1, over documents; n of the estimate counts documents."""

    first: int
    last: int
    loss: Estimate


def position_edges(length: int) -> list[int]:
    """1, 64, 128, 256, ... and `length`: buckets that double."""
    edges = [1]
    while edges[-1] < length:
        edges.append(min(max(64, 2 * edges[-1]), length))
    return edges


def loss_by_position(
    model: Model, documents: Sequence[Sequence[int]], progress: Callable[[int], None] | None = None
) -> list[PositionLoss]:
    """Documents of one length, each read from its start. progress(documents done). Raises EvalError."""
    lengths = {len(document) for document in documents}
    if len(lengths) != 1 or (length := lengths.pop()) < 2:
        raise EvalError("loss by position needs documents of one length, of two tokens or more")
    edges = position_edges(length)
    table = []  # [documents][buckets]
    for done, document in enumerate(documents, 1):
        losses = Reader(model, length).losses(torch.tensor(document, dtype=torch.int64), 1).double()
        table.append([float(losses[a - 1 : b - 1].mean()) for a, b in pairwise(edges)])
        if progress is not None:
            progress(done)
    return [PositionLoss(a, b, mean([row[i] for row in table])) for i, (a, b) in enumerate(pairwise(edges))]


def cut_documents(tokens: Sequence[int], length: int, count: int, bos: int | None) -> list[list[int]]:
    """`count` pieces of `length` tokens, spread evenly over `tokens`, each after the start token if there is one.

    Raises EvalError where there is less text than that.
    """
    body = length - (bos is not None)
    if body < 1 or len(tokens) < body * count:
        raise EvalError(
            f"{count} documents of {length} tokens need {max(body, 1) * count} tokens of text; there are "
            f"{len(tokens)}: give more text, fewer documents or a smaller length"
        )
    step = (len(tokens) - body) // max(count - 1, 1)
    return [[*(() if bos is None else (bos,)), *tokens[i * step : i * step + body]] for i in range(count)]
