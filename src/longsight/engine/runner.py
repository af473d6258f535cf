"""How a step runs: integers in, one forward pass, tokens out. The engine's tensors live here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from longsight.engine.counters import ReuseSampler
from longsight.engine.errors import EngineConfigError
from longsight.engine.memory import no_memory
from longsight.engine.request import Request, Selection
from longsight.engine.sampler import Logits, Rows, Sampled, sample
from longsight.engine.scheduler import Work
from longsight.model.replay import StepReplay
from longsight.ops import Batch, LayerPages

if TYPE_CHECKING:
    from longsight.model import Model


class Runner:
    """The page memory and the block table, and the step over them.

    The block table is one int32 array [max_running, max_blocks]. A request's row grows as its pages do; a step copies
    the rows it needs as memory, so no step's Python work grows with the context.
    cache: pages that exist already, of a memory-mapped file for one; None allocates them, `screened` with 8-bit copies
    of index keys.
    forward_seconds: how long the last step's forward pass took. reuse: samples what streams select again.
    """

    def __init__(
        self,
        model: Model,
        *,
        pages: int,
        page_bytes: int,
        block_size: int,
        max_running: int,
        max_blocks: int,
        screened: bool = False,
        cache: Sequence[LayerPages] | None = None,
    ) -> None:
        self.model, self.pages, self.block_size = model, pages, block_size
        self.forward_seconds = 0.0
        self.reuse = ReuseSampler(block_size)
        try:
            self.cache = list(cache) if cache is not None else model.allocate_cache(pages, screened=screened)
        except (RuntimeError, MemoryError) as error:
            raise no_memory(pages, page_bytes) from error
        self._replay = StepReplay(model, self.cache, max_blocks)
        try:
            self._table = np.full((max_running, max_blocks), -1, dtype=np.int32)
            # Whose pages each row holds, in which admission of that request, and how many of them.
            self._filled: list[tuple[int, int, int]] = [(-1, 0, 0)] * max_running
        except (MemoryError, ValueError) as error:
            raise EngineConfigError(
                f"no memory for the block table of {max_running} requests at once, {max_blocks} blocks each; lower "
                "max_running (--max-running)"
            ) from error

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page in every layer."""
        for layer in self.cache:
            layer.copy_page(source, target)

    def paused_screens(self) -> int:
        """Layers that scan without their 8-bit copies for a while, because these ruled out too little."""
        return sum(bool((p.screen_pauses[:, 0] > 0).any()) for p in self.cache if p.screen_pauses is not None)

    def run(self, work: Sequence[Work]) -> list[list[Sampled] | Exception]:
        """Run the step; the new tokens of each work that samples, in order, or why it has none."""
        tokens: list[int] = []
        starts = [0]
        kv_lens: list[int] = []
        wanted: list[int] = []
        entries: list[Rows] = []
        recording = False
        for request, start, length, drafts, samples in work:
            self._update_row(request)
            if samples and length == 1 and request.output:
                tokens.append(request.output[-1])
            else:
                tokens.extend(request.tokens(start, start + length))
            tokens.extend(drafts)
            starts.append(len(tokens))
            kv_lens.append(start + length + len(drafts))
            recording = recording or (samples and request.record_selection)
            if samples and request.sampling is not None:
                entries.append(Rows(request.sampling, len(wanted), drafts))
                wanted.extend(range(len(tokens) - 1 - len(drafts), len(tokens)))
        hook = _recorder([w for w in work if w.samples], wanted) if recording else None
        if hook is None and self.reuse.due():
            hook = self.reuse.watch(work, starts)
        token_ids = torch.from_numpy(np.array(tokens, dtype=np.int64))
        batch = self._batch([w.request.slot for w in work], starts, kv_lens)
        started = time.perf_counter()
        if len(wanted) == len(tokens) and hook is None and self._replay.supports(len(tokens)):
            logits = Logits(*self._replay.forward(token_ids, batch))
        else:
            rows = torch.tensor(wanted, dtype=torch.long)
            values = self.model.forward(token_ids, batch, self.cache, logit_rows=rows, on_select=hook)
            logits = Logits(values, *self.model.backend.likeliest(values))
        self.forward_seconds = time.perf_counter() - started
        return sample(logits, entries)

    def _batch(self, slots: list[int], starts: list[int], kv_lens: list[int]) -> Batch:
        width = -(-max(kv_lens) // self.block_size)
        # Through numpy: torch takes five times as long to make a tensor of a short list.
        numbers = np.array(starts + kv_lens, dtype=np.int32)
        return Batch.trusted(
            torch.from_numpy(numbers[: len(starts)]),
            torch.from_numpy(numbers[len(starts) :]),
            torch.from_numpy(self._table[slots, :width]),
            self.block_size,
            self.pages,
        )

    def _update_row(self, request: Request) -> None:
        owner, admission, filled = self._filled[request.slot]
        if (owner, admission) != (request.id, request.preemptions):
            filled = 0
        if filled < len(request.pages):
            self._table[request.slot, filled : len(request.pages)] = request.pages[filled:]
            self._filled[request.slot] = (request.id, request.preemptions, len(request.pages))


def _recorder(work: Sequence[Work], rows: Sequence[int]) -> Callable[[int, Tensor], None] | None:
    """A hook that notes what each sparse layer chose for the last rows of those requests that ask for it."""
    last_rows, at = [], -1
    for w in work:
        at += 1 + len(w.drafts)
        last_rows.append(rows[at])
    wanted = [(w.request, row) for w, row in zip(work, last_rows, strict=True) if w.request.record_selection]

    def note(layer: int, ids: Tensor) -> None:  # ids int32 [T, H_kv, k]
        for request, row in wanted:
            blocks = tuple(tuple(b for b in group if b >= 0) for group in ids[row].tolist())
            request.selections.append(Selection(len(request.output), layer, blocks))

    return note
