"""How a step runs: integers in, one forward pass, tokens out. The engine's tensors live here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longsight.engine.errors import EngineConfigError
from longsight.engine.request import Request, Selection
from longsight.engine.sampler import sample
from longsight.engine.scheduler import Work
from longsight.ops import Batch

if TYPE_CHECKING:
    from longsight.model import Model


class Runner:
    """The page memory and the block table, and the step over them.

    The block table is one int32 tensor [max_running, max_blocks]. A request's row is written once, when it first runs;
    a step copies the rows it needs as memory, so no step's Python work grows with the context.
    """

    def __init__(self, model: Model, *, pages: int, block_size: int, max_running: int, max_blocks: int) -> None:
        self.model, self.block_size = model, block_size
        try:
            self.cache = model.allocate_cache(pages)
        except (RuntimeError, MemoryError) as error:
            raise EngineConfigError(f"no memory for {pages} pages of the cache: {error}") from error
        self._table = torch.full((max_running, max_blocks), -1, dtype=torch.int32)
        self._owner = [-1] * max_running

    def run(self, work: Sequence[Work]) -> list[int | None]:
        """Run the step; the next token of each work that samples, in order (None: its logits are not finite)."""
        tokens: list[int] = []
        ends: list[int] = []
        for w in work:
            self._claim_row(w.request)
            tokens.extend(w.request.tokens(w.start, w.end))
            ends.append(len(tokens))
        sampling = [i for i, w in enumerate(work) if w.samples]
        rows = [ends[i] - 1 for i in sampling]
        requests = [work[i].request for i in sampling]
        with torch.inference_mode():
            logits = self.model.forward(
                torch.tensor(tokens, dtype=torch.long),
                self._batch(work, ends),
                self.cache,
                logit_rows=torch.tensor(rows, dtype=torch.long),
                on_select=_recorder(requests, rows),
            )
            return sample(logits, requests)

    def _batch(self, work: Sequence[Work], ends: list[int]) -> Batch:
        width = -(-max(w.end for w in work) // self.block_size)
        slots = torch.tensor([w.request.slot for w in work])
        return Batch(
            torch.tensor([0, *ends], dtype=torch.int32),
            torch.tensor([w.end for w in work], dtype=torch.int32),
            self._table[:, :width].index_select(0, slots),
        )

    def _claim_row(self, request: Request) -> None:
        if self._owner[request.slot] != request.id:
            self._table[request.slot, : len(request.pages)] = torch.tensor(request.pages, dtype=torch.int32)
            self._owner[request.slot] = request.id


def _recorder(requests: Sequence[Request], rows: Sequence[int]) -> Callable[[int, Tensor], None] | None:
    """A hook that notes what each sparse layer chose for the rows whose requests ask for it; None if none does."""
    wanted = [(request, row) for request, row in zip(requests, rows, strict=True) if request.record_selection]
    if not wanted:
        return None

    def note(layer: int, ids: Tensor) -> None:  # ids int32 [T, H_kv, k]
        for request, row in wanted:
            blocks = tuple(tuple(b for b in group if b >= 0) for group in ids[row].tolist())
            request.selections.append(Selection(len(request.output), layer, blocks))

    return note
