"""The page pool and the scheduler: exact accounting under any order of events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longsight.engine import (
    ContextLengthError,
    EngineConfigError,
    OutOfPagesError,
    PageAccountingError,
    PageAllocator,
    Request,
    SamplingParams,
)
from longsight.engine.memory import WORKSPACE_BYTES, plan_pages
from longsight.engine.scheduler import Scheduler


def test_allocate_and_release() -> None:
    pool = PageAllocator(8)
    first = pool.allocate(3)
    assert first == [0, 1, 2]
    assert (pool.used, pool.free) == (3, 5)
    pool.release(first)
    assert pool.used == 0
    assert pool.allocate(3) == first  # touched memory is used again first


def test_too_many_pages_takes_nothing() -> None:
    pool = PageAllocator(4)
    pool.allocate(1)
    with pytest.raises(OutOfPagesError, match="4 pages are needed, 3 of 4 are free"):
        pool.allocate(4)
    assert pool.used == 1


@pytest.mark.parametrize("bad", [[0, 0], [3], [-1], [99], [0, 3]])
def test_bad_release_changes_nothing(bad: list[int]) -> None:
    pool = PageAllocator(4)
    pool.allocate(2)
    with pytest.raises(PageAccountingError):
        pool.release(bad)
    assert pool.used == 2


def test_empty_pool_is_refused() -> None:
    with pytest.raises(EngineConfigError):
        PageAllocator(0)


def scheduler(pages: int = 10, *, block: int = 4, chunk: int = 6, running: int = 3) -> Scheduler:
    return Scheduler(
        PageAllocator(pages), block_size=block, max_model_len=pages * block, chunk_tokens=chunk, max_running=running
    )


def request(prompt: int, max_tokens: int) -> Request:
    return Request(range(prompt), SamplingParams(max_tokens=max_tokens))


def test_chunks_then_decode_rows_first() -> None:
    s = scheduler()
    a, b = request(4, 5), request(9, 2)
    s.add(a)
    s.add(b)
    step = s.schedule()
    assert [(w.request, w.start, w.length, w.samples) for w in step] == [(a, 0, 4, True), (b, 0, 2, False)]
    run(s, step)
    step = s.schedule()
    assert [(w.request, w.start, w.length) for w in step] == [(a, 4, 1), (b, 2, 6)]
    run(s, step)
    step = s.schedule()
    assert [(w.request, w.start, w.length, w.samples) for w in step] == [(a, 5, 1, True), (b, 8, 1, True)]


def test_a_request_that_never_fits_is_refused_with_the_numbers() -> None:
    s = scheduler(pages=10, block=4)
    s.add(request(30, 10))  # exactly the pool
    with pytest.raises(ContextLengthError) as caught:
        s.add(request(30, 11))
    for number in ("30 tokens", "max_tokens 11", "41 tokens", "11 pages of 4", "40 tokens per request", "10 pages"):
        assert number in str(caught.value)
    assert len(s.waiting) == 1


def test_what_does_not_fit_yet_waits_in_order() -> None:
    s = scheduler(pages=10, block=4)
    big, bigger, small = request(20, 4), request(30, 4), request(2, 2)
    for r in (big, bigger, small):
        s.add(r)
    s.schedule()
    # `small` would fit, but may not overtake: `bigger` could then wait for ever.
    assert s.running == [big]
    assert list(s.waiting) == [bigger, small]
    s.finish(big, "stop")
    s.schedule()
    assert s.running == [bigger, small]


@pytest.mark.parametrize(("name", "value"), [("chunk", 0), ("running", 0), ("chunk", -1)])
def test_bad_limits(name: str, value: int) -> None:
    with pytest.raises(EngineConfigError, match=f"is {value}"):
        scheduler(**{name: value})


def run(s: Scheduler, step: list) -> None:
    """What the engine does with a step's result, with token 0 for every sample."""
    for work in step:
        r = work.request
        r.computed = work.end
        if work.samples:
            r.output.append(0)
            if len(r.output) == r.params.max_tokens:
                s.finish(r, "length")


OPERATIONS = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 30), st.integers(1, 12)),
    st.tuples(st.just("step"), st.just(0), st.just(0)),
    st.tuples(st.just("cancel"), st.integers(0, 50), st.just(0)),
)


@given(
    operations=st.lists(OPERATIONS, max_size=40),
    pages=st.integers(3, 12),
    chunk=st.integers(1, 9),
    running=st.integers(1, 4),
)
def test_any_order_of_events_keeps_the_books(
    operations: list[tuple[str, int, int]], pages: int, chunk: int, running: int
) -> None:
    s = scheduler(pages, chunk=chunk, running=running)
    requests: list[Request] = []
    for kind, a, b in operations:
        if kind == "add" and a + b <= s.max_model_len:
            requests.append(request(a, b))
            s.add(requests[-1])
        elif kind == "step":
            step = s.schedule()
            check_step(s, step)
            run(s, step)
        elif kind == "cancel" and requests:
            s.finish(requests[a % len(requests)], "cancelled")
        check_books(s)
    for _ in range(10_000):
        if not s.has_work:
            break
        run(s, s.schedule())
    assert not s.has_work, "a request never ended"
    assert s.allocator.used == 0
    assert all(r.finished and r.pages == [] for r in requests)


def check_books(s: Scheduler) -> None:
    held = [page for r in s.running for page in r.pages]
    assert len(held) == len(set(held)) == s.allocator.used
    assert all(len(r.pages) * s.block_size >= r.max_length > r.computed for r in s.running)
    slots = [r.slot for r in s.running]
    assert len(slots) == len(set(slots)) <= s.max_running
    assert all(r.slot == -1 and not r.pages for r in s.waiting)


def check_step(s: Scheduler, step: list) -> None:
    assert bool(step) == s.has_work, "waiting requests and nothing to run: a deadlock"
    assert len({w.request.id for w in step}) == len(step)
    assert sum(w.length for w in step if not w.is_decode) <= s.chunk_tokens
    decoding = [w.is_decode for w in step]
    assert decoding == sorted(decoding, reverse=True)
    assert {w.request for w in step if w.is_decode} == {r for r in s.running if r.output}


def plan(**changes: int | None) -> tuple[int, int]:
    values: dict[str, int | None] = {
        "page_bytes": 1000,
        "block_size": 128,
        "context_limit": 4096,
        "max_model_len": None,
        "kv_bytes": None,
        "available": 10**12,
    }
    return plan_pages(**(values | changes))  # type: ignore[arg-type]


def test_memory_plan() -> None:
    assert plan() == (32, 4096)
    assert plan(kv_bytes=5999) == (5, 640)  # whole pages only, never one more than paid for
    assert plan(kv_bytes=10**6) == (1000, 4096)
    assert plan(max_model_len=129) == (2, 129)
    assert plan(max_model_len=129, kv_bytes=2000) == (2, 129)
    assert plan(available=WORKSPACE_BYTES + 3500) == (3, 384)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_bytes": 999}, "hold 0 pages of 1000 bytes; 1 are needed"),
        ({"max_model_len": 257, "kv_bytes": 2999}, "hold 2 pages of 1000 bytes; 3 are needed"),
        ({"max_model_len": 5000}, "max_model_len is 5000; this model accepts 2 to 4096"),
        ({"max_model_len": 1}, "max_model_len is 1"),
        ({"available": WORKSPACE_BYTES}, "hold 0 pages"),
        ({"kv_bytes": -5}, "hold -1 pages"),
    ],
)
def test_memory_that_cannot_be_had(changes: dict[str, int], message: str) -> None:
    with pytest.raises(EngineConfigError, match=message):
        plan(**changes)
