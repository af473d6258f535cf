"""Our HTTP server over an engine that computes nothing: what is left is protocol, parser, sockets and the event loop.

A prompt that holds the word `idle` never gets a token; any other gets `max_tokens` of them, one every 5 ms, which spell
ANSWER over and over.

    python -m bench.peers.stub_server        prints its port, runs until its standard input closes
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Sequence
from typing import Any

import uvicorn

from longsight.engine import Request, Stream, Update
from longsight.engine.driver import DriverStats
from longsight.server.app import create_app
from longsight.server.listen import listen
from longsight.server.service import Service

ANSWER = "The quick brown fox jumps over the lazy dog. "
PACE = 0.005  # seconds per token
MODEL = "stub"


class StubTokenizer:
    """A token is a byte."""

    added_tokens: dict[str, int] = {}  # noqa: RUF012

    def encode(self, text: str, add_special_tokens: bool = True) -> Sequence[int]:
        return list(text.encode())

    encode_plain = encode

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [chr(i) for i in ids]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return bytes(ids).decode(errors="replace")


class StubEngine:
    max_model_len = 1 << 20

    def check(self, request: Request) -> None:
        """Takes everything."""


class StubDriver:
    """Stands where EngineDriver stands; updates come from timers of the event loop."""

    draining = False

    def __init__(self) -> None:
        self.engine = StubEngine()
        self.live: dict[Request, asyncio.TimerHandle | None] = {}

    def submit(self, requests: Sequence[Request]) -> Stream:
        loop = asyncio.get_running_loop()
        stream = Stream(self, requests, loop)  # type: ignore[arg-type]
        for request in requests:
            idle = b"idle" in bytes(request.prompt)
            self.live[request] = None if idle else loop.call_later(PACE, self._token, loop, stream, request, 0)
        return stream

    def _token(self, loop: asyncio.AbstractEventLoop, stream: Stream, request: Request, count: int) -> None:
        letter = ANSWER[count % len(ANSWER)]
        request.output.append(ord(letter))
        done = count + 1 == request.params.max_tokens
        stream.deliver(Update(request, letter, [ord(letter)], len(request.prompt), "length" if done else None))
        self.live[request] = None if done else loop.call_later(PACE, self._token, loop, stream, request, count + 1)
        if done:
            del self.live[request]

    def cancel(self, requests: Sequence[Request]) -> None:
        for request in requests:
            timer = self.live.pop(request, None)
            if timer is not None:
                timer.cancel()

    def stats(self) -> DriverStats:
        return DriverStats(len(self.live), 0, 0, 1, True)


def main() -> None:
    driver: Any = StubDriver()
    app = create_app(Service(driver, StubTokenizer(), MODEL))
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", ws="none", backlog=2048)
    server = uvicorn.Server(config)
    print(listener.getsockname()[1], flush=True)

    def stop_with_the_bench() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=stop_with_the_bench, daemon=True).start()
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
