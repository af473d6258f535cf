"""The scheduler: what runs next, who waits, who makes way, and exact books under any order of events."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longsight.engine import ContextLengthError, EngineConfigError, PagePool, PrefixCache, Request, SamplingParams
from longsight.engine.draft import Drafter
from longsight.engine.scheduler import Scheduler, StepCost, Work

BLOCK = 4


@dataclass
class Memory:
    """What lies in each slot of each page: checks that every request reads its own tokens and nobody else's."""

    slots: dict[tuple[int, int], int] = field(default_factory=dict)

    def copy_page(self, source: int, target: int) -> None:
        for slot in range(BLOCK):
            self.slots[target, slot] = self.slots.get((source, slot), -1)

    def write(self, request: Request, start: int, tokens: list[int]) -> None:
        for at, token in enumerate(tokens, start):
            self.slots[request.pages[at // BLOCK], at % BLOCK] = token

    def read(self, request: Request, stop: int) -> list[int]:
        return [self.slots.get((request.pages[at // BLOCK], at % BLOCK), -1) for at in range(stop)]


def scheduler(
    pages: int = 10, *, chunk: int = 6, running: int = 3, memory: Memory | None = None, cost: StepCost | None = None
) -> Scheduler:
    pool = PagePool(pages)
    return Scheduler(
        pool,
        PrefixCache(pool, BLOCK),
        max_model_len=pages * BLOCK,
        chunk_tokens=chunk,
        max_running=running,
        copy_page=(memory or Memory()).copy_page,
        cost=cost,
    )


_fresh = iter(range(10_000, 10**9, 1000))


def request(prompt: int, max_tokens: int, **options: object) -> Request:
    """A prompt like no other."""
    start = next(_fresh)
    return Request(range(start, start + prompt), SamplingParams(max_tokens=max_tokens), **options)  # type: ignore[arg-type]


def answer_token(r: Request) -> int:
    """The next token, as a function of the text so far."""
    return (sum(r.tokens(0, r.length)) * 31 + r.length) % 7


def run(s: Scheduler, step: list[Work], memory: Memory | None = None) -> None:
    """What the engine does with a step, drafts included."""
    for work in step:
        r = work.request
        if memory is not None:
            assert memory.read(r, work.start) == list(r.tokens(0, work.start)), "a request reads what is not its text"
            memory.write(r, work.start, [*r.tokens(work.start, work.end), *work.drafts])
    for work in step:
        r = work.request
        accepted = 0
        if work.samples:
            for i in range(len(work.drafts) + 1):
                token = answer_token(r)
                r.output.append(token)
                done = len(r.output) == r.params.max_tokens
                if done or i == len(work.drafts) or work.drafts[i] != token:
                    break
                accepted += 1
            if r.drafter is not None:
                r.drafter.extend(r.output[-accepted - 1 :])
                if work.drafts:
                    r.drafter.verified(len(work.drafts), accepted)
        s.advance(r, work.end + accepted)
        if len(r.output) == r.params.max_tokens:
            s.finish(r, "length")


def run_to_the_end(s: Scheduler, memory: Memory | None = None) -> list[list[Work]]:
    steps = []
    while s.has_work:
        steps.append(s.schedule())
        assert steps[-1], "waiting requests and nothing to run: a deadlock"
        assert len(steps) < 20_000, "a request never ends"
        run(s, steps[-1], memory)
    return steps


def test_running_streams_first_then_chunks_on_the_page_grid() -> None:
    s = scheduler(chunk=8)
    a, b = request(4, 5), request(11, 2)
    s.add(a)
    s.add(b)
    step = s.schedule()
    assert [(w.request, w.start, w.length, w.samples) for w in step] == [(a, 0, 4, True)]
    run(s, step)
    step = s.schedule()
    assert [(w.request, w.start, w.length, w.is_decode) for w in step] == [(a, 4, 1, True), (b, 0, 8, False)]
    run(s, step)
    step = s.schedule()
    assert [(w.request, w.start, w.length, w.samples) for w in step] == [(a, 5, 1, True), (b, 8, 3, True)]


def test_prompts_that_fit_are_read_together() -> None:
    s = scheduler(100, chunk=30, running=8)
    requests = [request(7, 1) for _ in range(5)]
    for r in requests:
        s.add(r)
    assert [(w.request, w.length) for w in s.schedule()] == list(zip(requests, [7, 7, 7, 7, 2], strict=True))


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    cost = StepCost(fixed=1, per_position=0.001)
    s = scheduler(1000, chunk=400, running=8, cost=cost)
    long = request(3000, 1)
    s.add(long)
    for _ in range(5):
        run(s, s.schedule())
    short = request(40, 5)
    s.add(short)
    step = s.schedule()
    assert [w.request for w in step] == [short, long]
    assert step[0].samples
    assert cost.of(step[1].start, step[1].length) <= 0.55 * cost.of(0, 40), "half as much again, not more"
    run(s, step)
    # So short that half its work is less than a block of the long one: alone, but not twice in a row.
    beside = []
    for _ in range(6):
        s.add(request(6, 1))
        step = s.schedule()
        assert step[0].samples
        beside.append(any(w.request is long for w in step))
        run(s, step)
    assert beside == [False, True] * 3


def test_a_flow_of_short_prompts_does_not_starve_a_long_one() -> None:
    s = scheduler(1000, chunk=64, running=8, cost=StepCost(1, 1))
    long = request(400, 1)
    s.add(long)
    for _ in range(2 * 400 // BLOCK + 2):
        s.add(request(60, 1))
        run(s, s.schedule())
    assert long.finished


def test_priority_goes_before_arrival_and_takes_the_place_of_lesser_ones() -> None:
    s = scheduler(pages=10, running=2)
    low, lower = request(8, 20, priority=1), request(8, 20, priority=2)
    for r in (low, lower):
        s.add(r)
    for _ in range(4):
        run(s, s.schedule())
    assert s.running == [low, lower]
    kept = list(lower.output)
    urgent = request(8, 2)
    s.add(urgent)
    s.schedule()
    assert s.running == [urgent, low]
    assert s.waiting == [lower]
    assert lower.output == kept
    assert (lower.preemptions, s.preemptions) == (1, 1)
    run_to_the_end(s)
    assert len(lower.output) == 20


def test_a_request_that_never_fits_is_refused_with_the_numbers() -> None:
    s = scheduler(pages=10)
    s.add(request(30, 10))  # exactly the pool
    with pytest.raises(ContextLengthError) as caught:
        s.add(request(30, 11))
    for number in ("30 tokens", "max_tokens 11", "41 tokens", "11 pages of 4", "40 tokens per request", "10 pages"):
        assert number in str(caught.value)
    assert len(s.waiting) == 1


def test_what_does_not_fit_yet_waits_in_order() -> None:
    s = scheduler(pages=10)
    big, bigger, small = request(20, 4), request(30, 4), request(2, 2)
    for r in (big, bigger, small):
        s.add(r)
    s.schedule()
    # `small` would fit, but may not overtake: `bigger` could then wait for ever.
    assert s.running == [big]
    assert s.waiting == [bigger, small]
    s.finish(big, "stop")
    s.schedule()
    assert s.running == [bigger, small]


def test_answers_of_one_prompt_read_it_once() -> None:
    memory = Memory()
    s = scheduler(pages=30, memory=memory)
    leader = request(11, 6)
    followers = [Request(leader.prompt, SamplingParams(max_tokens=6), follows=leader) for _ in range(2)]
    for r in (leader, *followers):
        s.add(r)
    steps = run_to_the_end(s, memory)
    read = {r: sum(w.length for step in steps for w in step if w.request is r and not w.is_decode) for r in followers}
    assert read == dict.fromkeys(followers, 1)  # the last token gives the logits
    assert all(r.cached_tokens == 10 for r in followers)
    assert s.pool.used == 0


def test_a_conversation_goes_on_from_its_last_answer() -> None:
    memory = Memory()
    s = scheduler(pages=30, memory=memory)
    first = request(9, 5)
    s.add(first)
    run_to_the_end(s, memory)
    again = Request([*first.prompt, *first.output, 1, 2, 3], SamplingParams(max_tokens=2))
    s.add(again)
    run_to_the_end(s, memory)
    assert again.cached_tokens == 13  # all but the answer's last token, whose keys were never needed


def test_a_request_that_fills_the_pool_finds_room_beside_a_page_to_copy_from() -> None:
    memory = Memory()
    s = scheduler(pages=3, memory=memory)
    first = request(9, 2)
    s.add(first)
    run_to_the_end(s, memory)
    again = Request([*first.prompt, 5], SamplingParams(max_tokens=2))  # needs all three pages, and the third is known
    s.add(again)
    run_to_the_end(s, memory)
    assert again.cached_tokens == 8
    assert s.pool.used == 0


def test_a_request_without_room_asks_again_only_when_something_changed() -> None:
    s = scheduler(pages=10, chunk=40)
    big, waiting = request(21, 12), request(30, 4)
    for r in (big, waiting):
        s.add(r)
    lookups = []
    acquire = s.cache.acquire
    s.cache.acquire = lambda chain, limit: lookups.append(limit) or acquire(chain, limit)  # type: ignore[func-returns-value,method-assign]
    steps = run_to_the_end(s)
    assert len(steps) == 16
    # Once each, then whenever `big` takes or completes one of its three further pages, and when it ends.
    assert 3 <= len(lookups) <= 9


@pytest.mark.parametrize(("name", "value"), [("chunk", 0), ("running", 0), ("chunk", -1)])
def test_bad_limits(name: str, value: int) -> None:
    with pytest.raises(EngineConfigError, match=f"is {value}"):
        scheduler(**{name: value})


OPERATIONS = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 30), st.integers(1, 12), st.integers(0, 2)),
    st.tuples(st.just("step"), st.integers(1, 4), st.just(0), st.just(0)),
    st.tuples(st.just("cancel"), st.integers(0, 50), st.just(0), st.just(0)),
    st.tuples(st.just("clear"), st.just(0), st.just(0), st.just(0)),
)


@given(
    operations=st.lists(OPERATIONS, max_size=60),
    pages=st.integers(3, 14),
    chunk=st.integers(1, 9),
    running=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=300)
def test_any_order_of_events_keeps_the_books(
    operations: list[tuple[str, int, int, int]], pages: int, chunk: int, running: int, seed: int
) -> None:
    """Prompts share prefixes, so pages are shared, copied, evicted and written on; every text must stay its own."""
    memory, rng = Memory(), random.Random(seed)
    s = scheduler(pages, chunk=chunk, running=running, memory=memory)
    stem = rng.choices(range(3), k=40)
    requests: list[Request] = []
    for kind, a, b, priority in operations:
        if kind == "add" and a + b <= s.max_model_len:
            common = rng.randint(0, a)
            leader = rng.choice(requests) if requests and rng.random() < 0.2 else None
            prompt = stem[:common] + rng.choices(range(3), k=a - common)
            prompt = list(leader.prompt) if leader is not None and len(leader.prompt) + b <= s.max_model_len else prompt
            follows = leader if leader is not None and prompt == list(leader.prompt) else None
            params = SamplingParams(max_tokens=b)
            r = Request(prompt, params, priority=priority, follows=follows, cache_salt=bytes([rng.randint(0, 1)]))
            if rng.random() < 0.5:
                r.drafter = Drafter()
                r.drafter.extend(prompt)
            requests.append(r)
            s.add(r)
        elif kind == "step":
            for _ in range(a):
                step = s.schedule()
                check_step(s, step)
                run(s, step, memory)
        elif kind == "cancel" and requests:
            s.finish(requests[a % len(requests)], "cancelled")
        elif kind == "clear":
            s.cache.clear()
        check_books(s)
    run_to_the_end(s, memory)
    check_books(s)
    assert s.pool.used == 0
    assert all(r.finished and r.pages == [] for r in requests)
    for r in requests:
        if r.finish_reason == "length":
            assert r.output == solo(r)


def solo(r: Request) -> list[int]:
    alone = Request(r.prompt, r.params)
    for _ in range(r.params.max_tokens):
        alone.output.append(answer_token(alone))
    return alone.output


def check_books(s: Scheduler) -> None:
    held: dict[int, int] = {}
    for r in s.running:
        for page in r.pages:
            held[page] = held.get(page, 0) + 1
    assert {page: s.pool.holders(page) for page in range(s.pool.total) if s.pool.holders(page)} == held
    assert s.pool.used == len(held)
    assert all(len(r.pages) * BLOCK >= r.computed for r in s.running)
    slots = [r.slot for r in s.running]
    assert len(slots) == len(set(slots)) <= s.max_running
    assert all(r.slot == -1 and not r.pages and r.computed == 0 for r in s.waiting)
    for queue in (s.running, s.waiting):
        assert queue == sorted(queue, key=lambda r: r.rank)


def check_step(s: Scheduler, step: list[Work]) -> None:
    assert bool(step) == s.has_work, "waiting requests and nothing to run: a deadlock"
    assert len({w.request.id for w in step}) == len(step)
    assert all(w.request in s.running for w in step)
    assert sum(w.length for w in step if w.length > 1) <= s.chunk_tokens
    # A page that anybody writes to in this step belongs to that request alone.
    for w in step:
        for page in range(w.start // BLOCK, (w.start + w.rows - 1) // BLOCK + 1):
            assert s.pool.holders(w.request.pages[page]) == 1
