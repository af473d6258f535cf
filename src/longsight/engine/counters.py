"""What an engine has done so far, for a metrics endpoint: integers that its own thread adds to and anybody may read."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from longsight.engine.request import Request
from longsight.engine.scheduler import Work

SAMPLE_SECONDS = 10.0


@dataclass(slots=True)
class Counters:
    """Sums since the engine was made. Each is written by one thread, so that readers need no lock.

    prompt_tokens: read by the model, less than asked for where a prefix was known. drafted, accepted: guessed tokens
    verified, and found true. failed_steps: steps that ended their requests with an error.
    """

    steps: int = 0
    failed_steps: int = 0
    step_seconds: float = 0.0
    forward_seconds: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    drafted: int = 0
    accepted: int = 0


class ReuseSampler:
    """How many of a stream's selected blocks its step before had selected too.

    Looking costs a step that is not replayed from its tape, so it is done rarely: every `seconds`, two steps in a row
    of the longest stream, in every sparse layer and group, the row of its newest known token each time. Streams so
    short that every block is selected tell nothing and are left out. selected, reused: blocks of the second steps seen
    so far, and how many of them the first ones had.
    """

    def __init__(self, block_size: int, seconds: float = SAMPLE_SECONDS) -> None:
        self.block_size, self.seconds = block_size, seconds
        self.selected = self.reused = 0
        self._due = time.monotonic() + seconds
        self._request: Request | None = None  # whose second step is awaited
        self._before: dict[int, NDArray[np.int32]] = {}  # by layer: ids [H_kv, k], -1 for none

    def due(self) -> bool:
        """Whether this step is one to watch: nearly none is."""
        return self._request is not None or time.monotonic() >= self._due

    def watch(self, work: Sequence[Work], starts: Sequence[int]) -> Callable[[int, Tensor], None] | None:
        """The hook for a step that is `due`; the rows of work[i] begin at starts[i]. None where no stream tells."""
        before, first = self._before, self._request
        self._request, self._before = None, {}
        if first is not None:
            place = next((i for i, w in enumerate(work) if w.request is first and w.is_decode), None)
            if place is not None:
                self._due = time.monotonic() + self.seconds
                return self._compare(starts[place], before)
        streams = [i for i, w in enumerate(work) if w.is_decode and w.samples]
        self._due = time.monotonic() + self.seconds
        if not streams:
            return None
        place = max(streams, key=lambda i: work[i].start)
        return self._remember(work[place], starts[place])

    def _remember(self, work: Work, row: int) -> Callable[[int, Tensor], None]:
        blocks = work.start // self.block_size + 1

        def note(layer: int, ids: Tensor) -> None:  # ids int32 [T, H_kv, k]
            if blocks > ids.shape[2]:
                self._request = work.request
                self._before[layer] = ids[row].numpy().copy()

        return note

    def _compare(self, row: int, before: dict[int, NDArray[np.int32]]) -> Callable[[int, Tensor], None]:
        def note(layer: int, ids: Tensor) -> None:
            if layer not in before:
                return
            for now, then in zip(ids[row].numpy(), before[layer], strict=True):
                chosen = now[now >= 0]
                self.selected += len(chosen)
                self.reused += int(np.isin(chosen, then).sum())

        return note
