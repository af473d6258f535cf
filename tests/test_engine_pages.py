"""The page pool: exact accounting, who is given away when pages run out, and what memory buys."""

from __future__ import annotations

import pytest

from longsight.engine import (
    EngineConfigError,
    OutOfPagesError,
    PageAccountingError,
    PagePool,
)
from longsight.engine.memory import WORKSPACE_BYTES, plan_pages


def test_allocate_and_release() -> None:
    pool = PagePool(8)
    first = pool.allocate(3)
    assert first == [0, 1, 2]
    assert (pool.used, pool.free) == (3, 5)
    pool.release(first)
    assert pool.used == 0
    assert pool.allocate(3) == first  # touched memory is used again first


def test_too_many_pages_takes_nothing() -> None:
    pool = PagePool(4)
    pool.allocate(1)
    with pytest.raises(OutOfPagesError, match="4 pages are needed, 3 of 4 are free"):
        pool.allocate(4)
    assert pool.used == 1


@pytest.mark.parametrize("bad", [[0, 0], [3], [-1], [99], [0, 3]])
def test_bad_release_changes_nothing(bad: list[int]) -> None:
    pool = PagePool(4)
    pool.allocate(2)
    with pytest.raises(PageAccountingError):
        pool.release(bad)
    assert pool.used == 2


def test_empty_pool_is_refused() -> None:
    with pytest.raises(EngineConfigError):
        PagePool(0)


def test_known_pages_are_given_away_last_and_the_one_idle_longest_first() -> None:
    pool, evicted = PagePool(5), []
    pool.on_evict = evicted.append
    pages = pool.allocate(4)
    for page in pages[:3]:
        pool.remember(page)
    pool.release(pages)
    assert (pool.used, pool.free, pool.cached) == (0, 5, 3)
    assert pool.allocate(2) == [3, 4]  # the unknown one and the one never used
    assert evicted == []
    assert pool.allocate(1) == [2]  # the end of what was released together goes first
    pool.hold(0)
    assert pool.allocate(1) == [1]
    assert evicted == [2, 1]
    with pytest.raises(OutOfPagesError, match="1 pages are needed, 0 of 5 are free"):
        pool.allocate(1)
    pool.release([0])
    assert pool.cached == 1


def test_a_page_has_as_many_holders_as_hold_it() -> None:
    pool = PagePool(2)
    (page,) = pool.allocate(1)
    pool.hold(page)
    pool.release([page])
    assert (pool.used, pool.holders(page)) == (1, 1)
    pool.release([page])
    assert pool.used == 0
    with pytest.raises(PageAccountingError, match="nothing in it"):
        pool.hold(page)
    with pytest.raises(PageAccountingError, match="held by nobody"):
        pool.remember(page)


def test_forgotten_pages_are_unused_again() -> None:
    pool = PagePool(3)
    pages = pool.allocate(2)
    for page in pages:
        pool.remember(page)
    pool.release([pages[0]])
    for page in pages:
        pool.forget(page)
    assert (pool.used, pool.cached) == (1, 0)
    pool.release([pages[1]])
    assert (pool.used, pool.free, pool.cached) == (0, 3, 0)


def test_pages_of_an_earlier_run_are_idle_and_go_in_order() -> None:
    pool = PagePool(4)
    pool.adopt([2, 0])
    assert (pool.free, pool.cached) == (4, 2)
    assert pool.allocate(3) == [1, 2, 3]
    with pytest.raises(PageAccountingError, match="in use"):
        pool.adopt([1])
    with pytest.raises(PageAccountingError, match="pool of 4"):
        pool.adopt([9])


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
        ({"kv_bytes": 999}, r"raise kv_bytes \(--kv-memory\)$"),
        ({"max_model_len": 257, "kv_bytes": 2999}, r"raise kv_bytes \(--kv-memory\) or lower max_model_len"),
        ({"available": 0}, r"free some memory, use kv_dir \(--kv-dir\)$"),
        (
            {"available": WORKSPACE_BYTES + 7, "on_disk": True},
            r"^7 bytes of free space on the disk of kv_dir \(--kv-dir\)",
        ),
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
