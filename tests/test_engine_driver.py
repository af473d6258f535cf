"""The engine's thread: submit, cancel and close from an asyncio loop, with every page back in the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from fake_model import ByteTokenizer, FakeModel, expected_output
from longsight.engine import (
    ContextLengthError,
    Engine,
    EngineDriver,
    EngineStoppedError,
    QueueFullError,
    Request,
    SamplingParams,
    StepFailedError,
    Update,
)


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def driver(model: FakeModel) -> Iterator[EngineDriver]:
    engine = Engine(model, ByteTokenizer(), kv_bytes=40 * model.config.page_bytes(), chunk_tokens=32, max_running=2)
    driver = EngineDriver(engine, max_queue=3)
    yield driver
    driver.close(timeout=10)
    assert engine.pages.used == 0


def greedy(length: int, max_tokens: int = 5) -> Request:
    return Request([i % 250 for i in range(length)], SamplingParams(max_tokens=max_tokens, temperature=0))


async def collect(driver: EngineDriver, *requests: Request) -> list[Update]:
    return [update async for update in driver.submit(requests).updates() if update]


async def pages_return(driver: EngineDriver) -> None:
    async with asyncio.timeout(10):
        while driver.engine.has_work or driver.stats().pages_used:
            await asyncio.sleep(0.005)


def test_many_at_once(driver: EngineDriver) -> None:
    async def main() -> None:
        first = [greedy(50), greedy(3)]
        second = greedy(90, 20)
        updates, _ = await asyncio.gather(collect(driver, *first), collect(driver, second))
        assert {u.request for u in updates} == set(first)
        for r in (*first, second):
            assert r.output == expected_output(r.prompt, r.params.max_tokens)

    asyncio.run(main())


def test_closing_a_stream_frees_its_pages(driver: EngineDriver, model: FakeModel) -> None:
    model.seconds = 0.01

    async def main() -> None:
        stream = driver.submit([greedy(300, 200)])
        async for update in stream.updates():
            if update and update.tokens:
                break
        assert driver.stats().pages_used > 0
        stream.close()
        stream.close()
        await pages_return(driver)
        assert driver.stats().running == 0

    asyncio.run(main())


def test_a_quiet_stream_has_a_heartbeat(driver: EngineDriver, model: FakeModel) -> None:
    model.seconds = 0.2

    async def main() -> None:
        updates = [u async for u in driver.submit([greedy(9, 2)]).updates(heartbeat=0.02)]
        assert updates.count(None) >= 4
        assert [t for u in updates if u for t in u.tokens] == expected_output(greedy(9).prompt, 2)

    asyncio.run(main())


def test_a_request_cancelled_before_it_began(driver: EngineDriver, model: FakeModel) -> None:
    model.seconds = 0.02

    async def main() -> None:
        running = [asyncio.create_task(collect(driver, greedy(40, 9))) for _ in range(2)]
        await asyncio.sleep(0.05)
        waiting = driver.submit([greedy(10)])
        waiting.close()
        await asyncio.gather(*running)
        await pages_return(driver)

    asyncio.run(main())


def test_the_queue_has_an_end(driver: EngineDriver, model: FakeModel) -> None:
    model.seconds = 0.02

    async def main() -> None:
        streams = [driver.submit([greedy(40, 30)]) for _ in range(2)]
        while driver.stats().running < 2:
            await asyncio.sleep(0.005)
        streams += [driver.submit([greedy(4)]) for _ in range(3)]
        with pytest.raises(QueueFullError, match="3 requests wait already and the queue holds 3"):
            driver.submit([greedy(4)])
        for stream in streams:
            stream.close()
        await pages_return(driver)
        await collect(driver, greedy(4))

    asyncio.run(main())


def test_a_bad_request_takes_none_of_its_group_along(driver: EngineDriver) -> None:
    async def main() -> None:
        with pytest.raises(ContextLengthError):
            driver.submit([greedy(4), greedy(4, 10_000)])
        await pages_return(driver)

    asyncio.run(main())


def test_a_failed_step_is_told_and_the_thread_lives_on(driver: EngineDriver, model: FakeModel) -> None:
    def explode(tokens: list[int]) -> None:
        raise MemoryError("no room for a tile")

    async def main() -> None:
        model.before = explode
        updates = await collect(driver, greedy(9))
        assert isinstance(updates[-1].error, StepFailedError)
        model.before = None
        updates = await collect(driver, greedy(9))
        assert updates[-1].finish_reason == "length"

    asyncio.run(main())


def test_close_ends_what_runs(model: FakeModel) -> None:
    model.seconds = 0.02
    driver = EngineDriver(Engine(model, kv_bytes=40 * model.config.page_bytes()))

    async def main() -> None:
        stream = driver.submit([greedy(40, 200)])
        updates = []
        async for update in stream.updates():
            assert update
            updates.append(update)
            if len(updates) == 3:
                threading.Thread(target=driver.close).start()
        assert isinstance(updates[-1].error, EngineStoppedError)
        with pytest.raises(EngineStoppedError):
            driver.submit([greedy(4)])

    asyncio.run(main())
    driver.close(10)
    assert driver.engine.pages.used == 0
    assert not driver.stats().alive


def test_a_defect_in_the_engine_is_told_to_everyone(driver: EngineDriver) -> None:
    def broken(stats: object) -> None:
        raise RuntimeError("a callback that raises")

    async def main() -> None:
        driver.engine.on_step = broken
        updates = await collect(driver, greedy(40))
        assert isinstance(updates[-1].error, EngineStoppedError)

    asyncio.run(main())
    driver.close(10)
    assert driver.engine.pages.used == 0


def test_a_loop_that_is_gone_does_no_harm(driver: EngineDriver, model: FakeModel) -> None:
    model.seconds = 0.01

    async def leave() -> None:
        driver.submit([greedy(40, 5)])

    asyncio.run(leave())

    async def main() -> None:
        updates = await collect(driver, greedy(9))
        assert updates[-1].finish_reason == "length"
        await pages_return(driver)

    asyncio.run(main())


def test_the_loop_stays_free_during_a_step(driver: EngineDriver, model: FakeModel) -> None:
    model.seconds = 0.3

    async def main() -> None:
        task = asyncio.create_task(collect(driver, greedy(9, 2)))
        longest = 0.0
        while not task.done():
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - started)
        assert longest < 0.2

    asyncio.run(main())
