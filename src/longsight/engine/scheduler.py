"""Which tokens run next. First come, first served; plain Python over integers.

Pages for prompt + max_tokens are reserved when a request is admitted, so an admitted request always runs to its end:
nothing is preempted and nothing can deadlock. Requests that do not fit yet wait, in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from longsight.engine.errors import ContextLengthError, EngineConfigError
from longsight.engine.pages import PageAllocator
from longsight.engine.request import FinishReason, Request


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens [start, start + length) of one request, to run in one step."""

    request: Request
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def samples(self) -> bool:
        """Whether the last row is the request's newest token, so that the step yields another one."""
        return self.end == self.request.length

    @property
    def is_decode(self) -> bool:
        return self.start >= len(self.request.prompt)


class Scheduler:
    """Waiting and running requests, their pages and their slots.

    chunk_tokens: prompt tokens per step. Rows of running streams come first and ride on top (max_running at most),
    so a long prompt never stops them and its chunks stay on the page grid.
    """

    def __init__(
        self, allocator: PageAllocator, *, block_size: int, max_model_len: int, chunk_tokens: int, max_running: int
    ) -> None:
        for name, value in (("chunk_tokens", chunk_tokens), ("max_running", max_running)):
            if value < 1:
                raise EngineConfigError(f"{name} is {value}; it must be at least 1")
        if not 2 <= max_model_len <= allocator.total * block_size:
            raise EngineConfigError(
                f"max_model_len is {max_model_len}; {allocator.total} pages of {block_size} tokens allow 2 to "
                f"{allocator.total * block_size}"
            )
        self.allocator, self.block_size, self.max_model_len = allocator, block_size, max_model_len
        self.chunk_tokens, self.max_running = chunk_tokens, max_running
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._slots = list(range(max_running - 1, -1, -1))

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def check(self, prompt_tokens: int, max_tokens: int) -> None:
        """Raise ContextLengthError if prompt + max_tokens can never fit. Reads fixed limits only: for any thread."""
        if prompt_tokens + max_tokens > self.max_model_len:
            raise ContextLengthError(
                prompt_tokens, max_tokens, self.max_model_len, self.block_size, self.allocator.total
            )

    def add(self, request: Request) -> None:
        self.check(len(request.prompt), request.params.max_tokens)
        self.waiting.append(request)

    def schedule(self) -> list[Work]:
        """Admit what fits; then the next step: one row per running stream, and prompt chunks in order of arrival."""
        self._admit()
        work = [Work(r, r.computed, 1) for r in self.running if r.output]
        budget = self.chunk_tokens
        for request in self.running:
            if not request.output and budget:
                length = min(request.length - request.computed, budget)
                work.append(Work(request, request.computed, length))
                budget -= length
        return work

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request in any state and take its pages and slot back. Ending it twice is harmless."""
        if request.finished:
            return
        request.finish_reason = reason
        if request.slot >= 0:
            self.running.remove(request)
            self._slots.append(request.slot)
            self.allocator.release(request.pages)
            request.slot, request.pages = -1, []
        elif request in self.waiting:
            self.waiting.remove(request)

    def live(self) -> Iterator[Request]:
        yield from self.running
        yield from self.waiting

    def _admit(self) -> None:
        while self.waiting and self._slots:
            request = self.waiting[0]
            # Only the head may go: a smaller one behind it could otherwise starve it for ever.
            if self.pages_for(request.max_length) > self.allocator.free:
                return
            self.waiting.popleft()
            request.pages = self.allocator.allocate(self.pages_for(request.max_length))
            request.slot = self._slots.pop()
            self.running.append(request)
