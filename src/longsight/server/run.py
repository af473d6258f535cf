"""The server's life: it serves until a signal, and ends with care or at once."""

from __future__ import annotations

import logging
import signal
import socket
import time
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from longsight.engine import EngineDriver
from longsight.server.tls import Tls

log = logging.getLogger("longsight")
SHUTDOWN_SECONDS = 3


class Server(uvicorn.Server):
    """SIGTERM: take no more requests, finish those there are for up to `drain_seconds`, end the rest with an error.
    A second SIGTERM, or SIGINT at any time, ends them at once.

    While it drains it still answers probes, and refuses requests to the model with 503, so that a load balancer learns
    of it and clients go elsewhere. After SIGTERM `run` returns; after SIGINT it raises KeyboardInterrupt.
    """

    def __init__(
        self, app: ASGIApp, driver: EngineDriver, *, drain_seconds: float = 0.0, tls: Tls | None = None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
                proxy_headers=False,  # proxy.py does it
                **(tls.options() if tls else {}),
            )
        )
        self._driver, self._drain_seconds = driver, drain_seconds
        self._asked = self._at_once = False
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """In a signal handler: only notes what was asked, which the next tick does."""
        if sig != signal.SIGTERM:
            self._at_once = True
            super().handle_exit(sig, frame)
        elif not self._asked:
            self._asked = True
        else:
            self._at_once = True
            self.force_exit = self.should_exit  # it waits for slow readers, and nobody wants it to

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if self._asked and self._deadline is None:
            self._deadline = time.monotonic() + self._drain_seconds
            self._driver.drain()
            if self._driver.busy:
                log.warning("stopping: requests under way have %g seconds to end", self._drain_seconds)
        if self._deadline is not None and (
            self._at_once or not self._driver.busy or time.monotonic() >= self._deadline
        ):
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # First of all, so that connections can close: what still runs ends, with an error that its reader sees.
        cut_short = self._driver.busy
        self._driver.stop()
        if self._deadline is not None and not cut_short:
            # Every answer is complete, and may still be on its way to a slow reader.
            self.config.timeout_graceful_shutdown = max(round(self._deadline - time.monotonic()), SHUTDOWN_SECONDS)
        await super().shutdown(sockets)
