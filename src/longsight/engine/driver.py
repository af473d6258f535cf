"""The engine on a thread of its own: any thread submits and cancels, updates arrive in the asyncio loop that asked."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from longsight.engine.engine import Engine
from longsight.engine.errors import DrainingError, EngineStoppedError, QueueFullError
from longsight.engine.request import Request, Update

log = logging.getLogger("longsight")


@dataclass(eq=False)
class Stream:
    """The updates of one or more requests, in the order they happen; ends when all have ended.

    Leaving it early must be followed by `close`, which cancels what still runs. Belongs to the loop that made it.
    """

    driver: EngineDriver
    requests: Sequence[Request]
    _loop: asyncio.AbstractEventLoop
    _queue: asyncio.Queue[Update] = field(default_factory=asyncio.Queue)

    async def updates(self, heartbeat: float | None = None) -> AsyncIterator[Update | None]:
        """Each update as it happens, and None after every `heartbeat` seconds without one."""
        unfinished = len(self.requests)
        while unfinished:
            update = await self.next(heartbeat)
            unfinished -= update is not None and update.finish_reason is not None
            yield update

    async def next(self, timeout: float | None = None) -> Update | None:
        """The next update, or None after `timeout` seconds without one."""
        if not self._queue.empty():
            return self._queue.get_nowait()
        try:
            async with asyncio.timeout(timeout):
                return await self._queue.get()
        except TimeoutError:
            return None

    def close(self) -> None:
        self.driver.cancel(self.requests)

    def deliver(self, update: Update) -> None:
        """Called on the engine's thread. A loop that has gone away has no reader left."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, update)


@dataclass(frozen=True, slots=True)
class DriverStats:
    running: int
    waiting: int
    pages_used: int
    pages_total: int
    alive: bool
    draining: bool = False


class EngineDriver:
    """Runs an Engine's steps on a background thread until `close`.

    max_queue: requests that may wait for pages or a slot before more are refused with QueueFullError.
    """

    def __init__(self, engine: Engine, *, max_queue: int = 256) -> None:
        self.engine, self.max_queue = engine, max_queue
        self._inbox: deque[tuple[str, Request]] = deque()
        self._listeners: dict[Request, Callable[[Update], object]] = {}
        self._wake = threading.Condition()
        self._closing = self._draining = False
        self._thread = threading.Thread(target=self._run, name="longsight-engine", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[Request]) -> Stream:
        """Queue requests, all or none, from a running event loop. Raises what Engine.check raises, QueueFullError,
        DrainingError or EngineStoppedError."""
        stream = Stream(self, requests, asyncio.get_running_loop())
        self.listen(requests, stream.deliver)
        return stream

    def listen(self, requests: Sequence[Request], deliver: Callable[[Update], object]) -> None:
        """Queue requests, all or none; `deliver` gets each update on the engine's thread. Raises as `submit` does."""
        for request in requests:
            self.engine.check(request)
        with self._wake:
            if self._closing or not self._thread.is_alive():
                raise EngineStoppedError("the engine has stopped and takes no more requests")
            if self._draining:
                raise DrainingError("the server is about to stop and takes no more requests")
            waiting = len(self.engine.scheduler.waiting) + sum(kind == "add" for kind, _ in self._inbox)
            if waiting + len(requests) > self.max_queue:
                raise QueueFullError(waiting, self.max_queue)
            now = time.monotonic()
            for request in requests:
                request.arrived = now
                self._listeners[request] = deliver
                self._inbox.append(("add", request))
            self._wake.notify()

    def cancel(self, requests: Sequence[Request]) -> None:
        """End requests and free their pages when the step under way is over. Those that have ended are left alone."""
        with self._wake:
            for request in requests:
                if self._listeners.pop(request, None) is not None:
                    self._inbox.append(("cancel", request))
            self._wake.notify()

    def stats(self) -> DriverStats:
        scheduler, pages = self.engine.scheduler, self.engine.pages
        # A request handed in while a step runs waits like any other. A tuple: a deque may not change under a loop.
        inbox = sum(kind == "add" for kind, _ in tuple(self._inbox))
        return DriverStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + inbox,
            pages_used=pages.used,
            pages_total=pages.total,
            # Its last act is to tell everybody, and who has been told asks at once.
            alive=self._thread.is_alive() and not self._closing,
            draining=self._draining,
        )

    def drain(self) -> None:
        """Take no more requests; those there are run to their ends. See `busy`."""
        with self._wake:
            self._draining = True

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def busy(self) -> bool:
        """Whether anybody still waits for a request to end."""
        return bool(self._listeners)

    def stop(self) -> None:
        """Take no more requests and end all there are with EngineStoppedError, now; the thread ends after its step."""
        with self._wake:
            self._closing = True
            listeners, self._listeners = self._listeners, {}
            self._wake.notify()
        error = EngineStoppedError("the engine has stopped")
        for request, deliver in listeners.items():
            deliver(Update(request, finish_reason="error", error=error))

    def close(self, timeout: float | None = None) -> None:
        """Stop, and wait for the thread to end; its pages are free then."""
        self.stop()
        self._thread.join(timeout)
        if not self._thread.is_alive():
            self.engine.close()

    def _run(self) -> None:
        try:
            while self._take_inbox():
                for update in self.engine.step():
                    self._deliver(update)
        except Exception:
            log.exception("the engine's thread ends on a defect")
        finally:
            self.stop()
            for request in list(self.engine.scheduler.live()):
                self.engine.cancel(request)

    def _take_inbox(self) -> bool:
        """Wait for something to do, and do what was asked for between steps. False: time to stop."""
        with self._wake:
            self._wake.wait_for(lambda: self._inbox or self._closing or self.engine.has_work)
            commands, self._inbox = self._inbox, deque()
            closing = self._closing
        for kind, request in commands:
            if kind == "cancel":
                self.engine.cancel(request)
            else:
                self.engine.add(request)
        return not closing

    def _deliver(self, update: Update) -> None:
        with self._wake:
            deliver = self._listeners.get(update.request)
            if deliver is not None and update.finish_reason is not None:
                del self._listeners[update.request]
        if deliver is not None:
            deliver(update)
