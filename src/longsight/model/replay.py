"""Small steps without Python between their operators: recorded once per shape, then run again as one call.

A decode step of the same shape runs the same kernels on the same memory; only token rows, positions, lengths and the
block table differ, and these are copied into the tensors that the recorded step reads (see ops/tape.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longsight.model.attention import Step
from longsight.model.decoder import Model
from longsight.ops import Batch, LayerPages
from longsight.ops.tape import Tape, record

MAX_ROWS = 64  # larger steps spend their time in the kernels anyway
MAX_TAPES = 64  # shapes kept; the one unused longest goes first


@dataclass(frozen=True)
class _Recorded:
    """A tape and the memory it reads (batch, h, cos, sin) and writes (logits [T, V], likeliest [T], best [T])."""

    tape: Tape
    batch: Batch
    h: Tensor
    cos: Tensor
    sin: Tensor
    logits: Tensor
    likeliest: Tensor
    best: Tensor


class StepReplay:
    """Model.forward for steps of few rows that all want logits, over one cache. Bit for bit what forward gives.

    max_blocks: the widest block table that will come.
    """

    def __init__(self, model: Model, cache: Sequence[LayerPages], max_blocks: int) -> None:
        self._model, self._cache, self._max_blocks = model, cache, max_blocks
        self._recorded: OrderedDict[tuple[int, int, int], _Recorded] = OrderedDict()

    def supports(self, rows: int) -> bool:
        """Whether steps of this many rows can be replayed: few rows, on the compiled backend."""
        return 0 < rows <= MAX_ROWS and self._model.backend.NAME == "cpu" and self._model.replayable

    def tapes(self) -> list[Tape]:
        """What has been recorded, the one used longest ago first."""
        return [recorded.tape for recorded in self._recorded.values()]

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """token_ids int64 [T] -> logits [T, V] in the model's dtype, and what Backend.likeliest says of them.

        The next step of this shape overwrites them. Raises what Model.forward raises.
        """
        model = self._model
        model.check(token_ids, batch, self._cache)
        block_size = self._cache[0].layout.block_size
        batch.check_pages(block_size, self._cache[0].k.shape[0])
        h, cos, sin = model.inputs(token_ids, batch.positions)
        key = (batch.rows, batch.kv_lens.shape[0], torch.get_num_threads())
        recorded = self._recorded.get(key)
        if recorded is None:
            recorded = self._recorded[key] = self._record(h, cos, sin, batch)
            if len(self._recorded) > MAX_TAPES:
                self._recorded.popitem(last=False)
        else:
            self._recorded.move_to_end(key)
            for to, values in ((recorded.h, h), (recorded.cos, cos), (recorded.sin, sin)):
                to.copy_(values)
            for to, values in ((recorded.batch.cu_seqlens, batch.cu_seqlens), (recorded.batch.kv_lens, batch.kv_lens)):
                to.copy_(values)
            recorded.batch.block_table[:, : batch.block_table.shape[1]] = batch.block_table
            recorded.tape.replay()
        return recorded.logits, recorded.likeliest, recorded.best

    def _record(self, h: Tensor, cos: Tensor, sin: Tensor, batch: Batch) -> _Recorded:
        table = torch.full((batch.kv_lens.shape[0], self._max_blocks), -1, dtype=torch.int32)
        table[:, : batch.block_table.shape[1]] = batch.block_table
        own = Batch(batch.cu_seqlens.clone(), batch.kv_lens.clone(), table)
        # What a batch works out once must be there before the recording, which refuses to compute.
        own.check_pages(self._cache[0].layout.block_size, self._cache[0].k.shape[0])
        _ = own.rows
        with record() as finish:
            logits = self._model.head(self._model.layers(h, Step(self._model.backend, own, cos, sin), self._cache))
            likeliest, best = self._model.backend.likeliest(logits)
        return _Recorded(finish(), own, h, cos, sin, logits, likeliest, best)
