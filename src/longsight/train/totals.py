"""Sums of one step over micro-batches and processes, and the means they stand for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longsight.train.attention import KlRows
from longsight.train.batch import IGNORED, TrainBatch
from longsight.train.network import Output
from longsight.train.parallel import Processes

KL_ROWS = 1024  # of one forward pass, at most, that are compared over every key


@dataclass(frozen=True)
class Means:
    """loss: nats per target, nan without targets; accuracy; kl, captured: by layer; load: fp64 [layers, E] or None.

    targets, rows: over all processes. flags: which questions any process said yes to.
    """

    loss: float
    accuracy: float
    targets: int
    rows: int
    kl: list[float]
    captured: list[float]
    load: Tensor | None
    flags: list[bool]


class Totals:
    """What the forward passes of one step, or of one validation, add up to.

    Sums are fp64, so that their order, which differs with the number of processes, is far below what is printed.
    """

    def __init__(self, layers: int) -> None:
        self._scalars = torch.zeros(5, dtype=torch.float64)  # loss, targets, correct, rows, choosing
        self._kl = torch.zeros(layers, dtype=torch.float64)
        self._captured = torch.zeros(layers, dtype=torch.float64)
        self._load: Tensor | None = None

    def add(self, output: Output, rows: int, choosing: int) -> None:
        """rows: of the batch. choosing: those that leave a block out, over which `output.captured` is a mean."""
        loss, correct = torch.stack((output.loss.detach().double(), output.correct.double())).tolist()
        self._scalars += torch.tensor([loss, output.targets, correct, rows, choosing], dtype=torch.float64)
        self._kl += output.kl.detach().double().cpu()
        self._captured += output.captured.double().cpu() * choosing
        if output.expert_load is not None:
            load = output.expert_load.double().cpu()
            self._load = load if self._load is None else self._load + load

    def reduce(self, processes: Processes, flags: Sequence[bool] = ()) -> Means:
        """Over all processes; the same bits in each."""
        load = torch.zeros(0) if self._load is None else self._load
        votes = torch.tensor([float(flag) for flag in flags], dtype=torch.float64)
        parts = [self._scalars, self._kl, self._captured, votes, load.double().flatten()]
        sums = processes.sum(torch.cat(parts)).split([part.shape[0] for part in parts])
        loss, targets, correct, rows, choosing = sums[0].tolist()
        # Where no row leaves a block out, the blocks hold everything.
        captured = sums[2] / choosing if choosing else sums[2] + 1
        return Means(
            loss=loss / targets if targets else math.nan,
            accuracy=correct / targets if targets else math.nan,
            targets=int(targets),
            rows=int(rows),
            kl=sums[1].tolist(),
            captured=captured.tolist(),
            load=None if self._load is None else sums[4].view_as(load),
            flags=[vote > 0 for vote in sums[3].tolist()],
        )


def count(batches: Sequence[TrainBatch], processes: Processes) -> tuple[int, int]:
    """(targets, rows) of a step over all processes: what losses and KL are divided by."""
    targets = sum(int((batch.targets != IGNORED).sum()) for batch in batches)
    rows = sum(batch.documents.rows for batch in batches)
    total = processes.sum(torch.tensor([targets, rows], dtype=torch.float64)).tolist()
    return int(total[0]), int(total[1])


def choosing_rows(batch: TrainBatch, topk: int, block_size: int) -> int:
    """Rows with more visible blocks than are kept."""
    return int((batch.documents.positions >= topk * block_size).sum())


def kl_weights(batch: TrainBatch, rows: int, targets: int, on_targets: float) -> Tensor:
    """fp32 [T], the weight of each row in the KL: all alike, but for the share `on_targets` of the whole, which rows
    with a target have to themselves. rows, targets: of the whole step, over all batches and processes."""
    learned = (batch.targets != IGNORED).float()
    return (1 - on_targets) / rows + learned * (on_targets / max(targets, 1))


def kl_rows(batch: TrainBatch, targets: int, share: float) -> KlRows:
    """The rows with a target, which have `share` of the KL among them, all alike: at most KL_ROWS, evenly spread.
    targets: of the whole step, over all batches and processes."""
    learned = (batch.targets != IGNORED).nonzero()[:, 0]
    count = learned.shape[0]
    kept = min(count, KL_ROWS)
    chosen = learned[torch.arange(kept, device=learned.device) * count // max(kept, 1)]
    each = share * count / (max(kept, 1) * max(targets, 1))
    return KlRows(chosen, torch.full((kept,), each, device=learned.device))
