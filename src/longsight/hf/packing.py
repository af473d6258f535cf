"""Text files as packed documents: what conversion trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longsight.hf.converted import ConversionError
from longsight.ops.training import Documents
from longsight.train.batch import IGNORED, TrainBatch


def read_pieces(tokenizer: Any, files: Sequence[Path], length: int) -> list[Tensor]:
    """Every file as one document, cut into pieces of `length` tokens, int64. Raises ConversionError without text."""
    pieces: list[Tensor] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConversionError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from None
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        pieces += [piece for piece in torch.tensor(ids, dtype=torch.int64).split(length) if len(piece) > 1]
    if not pieces:
        raise ConversionError(
            f"no text in {', '.join(map(str, files)) or 'no file'}: give at least one file with --text"
        )
    return pieces


class Packer:
    """Batches of `tokens` tokens from shuffled pieces: a pure function of the step's number.

    The last of the shuffled pieces, one batch of them, are kept apart as a probe, if enough others remain.
    held_out: whether they are, so that no training batch holds any of the probe.
    """

    def __init__(self, pieces: Sequence[Tensor], tokens: int, seed: int) -> None:
        self.tokens, self.seed = tokens, seed
        order = self._order(0, len(pieces))
        self._held = self._fill([pieces[i] for i in reversed(order)])
        self.held_out = 4 * len(self._held) <= len(pieces)
        self._taught = [pieces[i] for i in (order[: -len(self._held)] if self.held_out else order)]

    @property
    def probe(self) -> TrainBatch:
        """The batch on which progress is measured."""
        return pack(self._held)

    def batch(self, step: int) -> TrainBatch:
        """The batch of a step: pieces in an order shuffled anew every time all were seen."""
        place, room = step * self.tokens, self.tokens
        total = sum(map(len, self._taught))
        chosen: list[Tensor] = []
        while room > 1:
            epoch, offset = divmod(place, total)
            for i in self._order(1 + epoch, len(self._taught)):
                part = self._taught[i][offset : offset + room]
                offset = max(offset - len(self._taught[i]), 0)
                if len(part):
                    chosen.append(part)
                place, room = place + len(part), room - len(part)
                if not room:
                    break
        return pack(chosen)

    def _fill(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        chosen: list[Tensor] = []
        room = self.tokens
        for piece in pieces:
            if room < 2:
                break
            chosen.append(piece[:room])
            room -= len(chosen[-1])
        return chosen

    def _order(self, epoch: int, count: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(count, generator=generator).tolist()
        return order


def pack(pieces: Sequence[Tensor]) -> TrainBatch:
    """Documents one after the other: a token's target is the next of its document, RoPE counts from its start."""
    documents = Documents.of_lengths([len(piece) for piece in pieces])
    tokens = torch.cat(list(pieces))
    targets = torch.cat([torch.cat((piece[1:], torch.tensor([IGNORED]))) for piece in pieces])
    return TrainBatch(tokens, targets, documents.positions.long(), documents)


@dataclass(frozen=True)
class Step:
    """What one step of conversion came to.

    kl: of each layer; captured: the share of dense attention inside each layer's chosen blocks, where it was measured;
    loss: of the next token, nats, in the sparse stage; tokens: how many the step read.
    """

    stage: str
    step: int
    steps: int
    kl: tuple[float, ...]
    captured: tuple[float, ...] | None
    loss: float | None
    tokens: int
    seconds: float
