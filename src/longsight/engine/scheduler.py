"""Which tokens run next: continuous batching under a token budget. Plain Python over integers.

Requests are ranked by (priority, arrival). Pages are taken as tokens need them. When they run out, the lowest-ranked
running request gives its pages back and waits again, its generated tokens kept; so the highest-ranked one always runs
to its end, and every request in its turn becomes that one.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from longsight.engine.errors import ContextLengthError, EngineConfigError
from longsight.engine.page_chain import PageChain
from longsight.engine.pages import PagePool
from longsight.engine.prefix_cache import Hit, PrefixCache
from longsight.engine.request import FinishReason, Request
from longsight.ops.cost import ModelShape


class Work(NamedTuple):
    """Known tokens [start, start + length) of one request and guesses of what follows, to run in one step."""

    request: Request
    start: int
    length: int
    drafts: Sequence[int] = ()
    samples: bool = False  # the last known row is the request's newest token, so that the step yields another one

    @property
    def end(self) -> int:
        """Known tokens computed once the step is done."""
        return self.start + self.length

    @property
    def rows(self) -> int:
        return self.length + len(self.drafts)

    @property
    def is_decode(self) -> bool:
        return self.start >= len(self.request.prompt)


@dataclass(frozen=True)
class StepCost:
    """What tokens cost, in any unit: each `fixed`, and `per_position` for every token before it."""

    fixed: float = 1.0
    per_position: float = 0.0

    @classmethod
    def of_model(cls, shape: ModelShape) -> StepCost:
        """In FLOPs: selected blocks and matrix products are the same for every token, scans grow with the position."""
        a = shape.attention
        per_token = 4 * a.heads * a.head_dim
        return cls(
            2 * shape.linear_parameters + shape.sparse_layers * per_token * a.budget,
            shape.full_layers * per_token + shape.sparse_layers * 2 * a.kv_heads * a.index_dim,
        )

    def of(self, start: int, length: int) -> float:
        return length * (self.fixed + self.per_position * (start + length / 2))

    def tokens_within(self, start: int, budget: float) -> int:
        """The most tokens from `start` on whose cost stays within `budget`, to a close approximation."""
        return int(budget / (self.fixed + self.per_position * start))


class Scheduler:
    """Waiting and running requests, their pages and their slots.

    chunk_tokens: prompt tokens per step. Rows of running streams come first and ride on top (max_running at most).
    copy_page(source, target): copies a page's memory, for hits that end mid-page. speculate: verify drafted tokens.
    """

    def __init__(
        self,
        pool: PagePool,
        cache: PrefixCache,
        *,
        max_model_len: int,
        chunk_tokens: int,
        max_running: int,
        copy_page: Callable[[int, int], None],
        cost: StepCost | None = None,
        reuse: bool = True,
    ) -> None:
        for name, value in (("chunk_tokens", chunk_tokens), ("max_running", max_running)):
            if value < 1:
                raise EngineConfigError(f"{name} is {value}; it must be at least 1")
        block_size = cache.block_size
        if not 2 <= max_model_len <= pool.total * block_size:
            raise EngineConfigError(
                f"max_model_len is {max_model_len}; {pool.total} pages of {block_size} tokens allow 2 to "
                f"{pool.total * block_size}"
            )
        self.pool, self.cache, self.block_size, self.max_model_len = pool, cache, block_size, max_model_len
        self.chunk_tokens, self.max_running, self.reuse = chunk_tokens, max_running, reuse
        self.waiting: list[Request] = []  # by rank
        self.running: list[Request] = []  # by rank
        self.preemptions = 0
        self._skipped: set[int] = set()  # ids of prompts that had to leave the last step to shorter ones
        self._refused: tuple[int, ...] | None = None  # the state in which the first in line last found no room
        self._cost, self._copy_page = cost or StepCost(), copy_page
        self._slots = list(range(max_running - 1, -1, -1))

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def check(self, prompt_tokens: int, max_tokens: int) -> None:
        """Raise ContextLengthError if prompt + max_tokens can never fit. Reads fixed limits only: for any thread."""
        if prompt_tokens + max_tokens > self.max_model_len:
            raise ContextLengthError(prompt_tokens, max_tokens, self.max_model_len, self.block_size, self.pool.total)

    def add(self, request: Request) -> None:
        self.check(len(request.prompt), request.max_tokens)
        request.chain = PageChain(request.tokens, self.block_size, salt=request.cache_salt)
        insort(self.waiting, request, key=_rank)

    def schedule(self) -> list[Work]:
        """Admit what fits; then the next step: running streams first, then prompt chunks within the budget."""
        if self.waiting:
            self._admit()
        work: list[Work] = []
        streams = [r for r in self.running if _is_streaming(r)]
        only_streams = len(streams) == len(self.running)
        for request in streams:
            if request.slot < 0:
                continue  # preempted for one before it
            drafts = self._drafts(request) if request.drafter is not None else ()
            computed = request.computed
            if self._grow(request, computed + 1 + len(drafts)):
                work.append(Work(request, computed, 1, drafts, True))
        return work if only_streams else work + self._prompts()

    def advance(self, request: Request, computed: int) -> None:
        """`computed` tokens of the request are in its pages now; full pages become known to the prefix cache."""
        request.computed = computed
        if not self.reuse or request.chain is None:
            return
        done_reading = computed == len(request.prompt) and any(r.follows is request for r in self.waiting)
        if done_reading or computed // self.block_size > request.chain.stored:
            self.cache.store(request.chain, request.pages, computed, partial=done_reading)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request in any state and take its pages and slot back. Ending it twice is harmless."""
        if request.finished:
            return
        request.finish_reason, request.ended = reason, time.monotonic()
        if request.slot >= 0:
            self._stop(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def live(self) -> Iterator[Request]:
        yield from self.running
        yield from self.waiting

    def _prompts(self) -> list[Work]:
        """Prompt chunks: the one with the least left to do goes first, the others get what remains of the budget,
        but one that cannot end in this step at most half as much work as is in it by then: a short prompt waits for
        little more than itself.
        """
        reading = [r for r in self.running if not _is_streaming(r)]
        reading.sort(key=lambda r: (r.priority, self._cost.of(r.computed, r.length - r.computed), r.id))
        work: list[Work] = []
        tokens, spent = self.chunk_tokens, 0.0
        for request in reading:
            left = request.length - request.computed
            length = min(left, tokens)
            if work and length < left:
                share = self._cost.tokens_within(request.computed, spent / 2)
                if share < self.block_size:
                    # A block at least every second step, so that a flow of short prompts never starves a long one.
                    if request.id not in self._skipped:
                        self._skipped.add(request.id)
                        continue
                    share = self.block_size
                length = min(length, share)
            if length < left:
                length -= (request.computed + length) % self.block_size if length > self.block_size else 0
            if length <= 0:
                continue
            self._skipped.discard(request.id)
            work.append(Work(request, request.computed, length, samples=length == left))
            tokens -= length
            spent += self._cost.of(request.computed, length)
        return work

    def _drafts(self, request: Request) -> Sequence[int]:
        if request.drafter is None:
            return ()
        room = min(
            request.max_tokens - len(request.output) - 1,
            # Guesses never preempt anybody: they use pages that are there.
            (len(request.pages) + self.pool.free) * self.block_size - request.length,
        )
        return request.drafter.propose(room) if room > 0 else ()

    def _grow(self, request: Request, tokens: int) -> bool:
        """Pages for `tokens` tokens, preempting from the lowest rank up. False: the request itself had to go."""
        needed = self.pages_for(tokens) - len(request.pages)
        while needed > self.pool.free:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        if needed > 0:
            request.pages.extend(self.pool.allocate(needed))
        return True

    def _admit(self) -> None:
        held_back: list[Request] = []
        while self.waiting:
            request = self.waiting[0]
            leader = request.follows
            if leader is not None and not leader.finished and leader.computed < len(leader.prompt):
                held_back.append(self.waiting.pop(0))
                continue
            if self._refused == self._state(request) or not self._make_room(request):
                self._refused = self._state(request)
                break
            self.waiting.pop(0)
            insort(self.running, request, key=_rank)
        for request in held_back:
            insort(self.waiting, request, key=_rank)

    def _state(self, request: Request) -> tuple[int, ...]:
        """All that decides whether a request finds room: asking again before it changes costs a lookup for nothing."""
        return request.id, self.pool.free, len(self.running), self.cache.changes

    def _make_room(self, request: Request) -> bool:
        """Give a waiting request its slot and pages, known ones first; lower priorities make way. False: not now."""
        while True:
            hit = self._lookup(request)
            if hit.tail is not None and not self._fits(request, hit):
                # The page to copy from may be the one too many, for a request that fills the pool: read it anew.
                self.pool.release([hit.tail])
                hit = Hit(hit.pages, tokens=len(hit.pages) * self.block_size)
            if self._fits(request, hit):
                break
            self.pool.release(hit.pages)
            if not self.running or self.running[-1].priority <= request.priority:
                return False
            self._preempt(self.running[-1])
        request.pages = hit.pages + self.pool.allocate(self.pages_for(request.length) - len(hit.pages))
        if hit.tail is not None:
            self._copy_page(hit.tail, request.pages[len(hit.pages)])
            self.pool.release([hit.tail])
        request.slot, request.computed = self._slots.pop(), hit.tokens
        if request.chain is not None:
            request.chain.stored = len(hit.pages)
        if request.admitted is None:
            request.admitted, request.cached_tokens = time.monotonic(), hit.tokens
            self.cache.count(hit, len(request.prompt))
        return True

    def _fits(self, request: Request, hit: Hit) -> bool:
        needed = self.pages_for(request.length) - len(hit.pages)
        # A page for each running stream is left, or the newcomer would be thrown out again at once.
        return bool(self._slots) and needed + len(self.running) <= self.pool.free

    def _lookup(self, request: Request) -> Hit:
        # The last token is always computed: the next one comes from its logits.
        if not self.reuse or request.chain is None:
            return Hit()
        return self.cache.acquire(request.chain, request.length - 1)

    def _preempt(self, request: Request) -> None:
        self._stop(request)
        request.preemptions += 1
        self.preemptions += 1
        insort(self.waiting, request, key=_rank)

    def _stop(self, request: Request) -> None:
        """Take a running request's slot and pages; what they hold stays known while nobody needs the room."""
        self.running.remove(request)
        self._skipped.discard(request.id)
        if self.reuse and request.chain is not None:
            self.cache.store(request.chain, request.pages, request.computed, partial=True)
        self._slots.append(request.slot)
        self.pool.release(request.pages)
        request.slot, request.pages, request.computed = -1, [], 0


def _is_streaming(request: Request) -> bool:
    """Whether only the newest generated token is left to compute: a resumed request reads its output again first."""
    output = request.output
    return bool(output) and len(request.prompt) + len(output) == request.computed + 1


def _rank(request: Request) -> tuple[int, int]:
    return request.rank
