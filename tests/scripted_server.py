"""A server that streams what a test wrote down, for the parts of the protocol that the built-in model never uses."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from live_server import wait_for
from longsight.server import web
from longsight.server.listen import listen

CONTEXT = 10_000


@dataclass
class Scripted:
    """answers: one per chat request, in order. An answer is a Response, or chunks to stream: dicts become JSON, strings
    are sent as they are, an Event is waited for. asked: bodies and headers of the requests so far."""

    url: str = ""
    answers: list[Response | Sequence[Any]] = field(default_factory=list)
    asked: list[tuple[dict[str, Any], dict[str, str]]] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)  # a client went away from an unfinished stream

    async def chat(self, http: Request) -> Response:
        self.asked.append((await http.json(), dict(http.headers)))
        answer = self.answers.pop(0)
        if isinstance(answer, Response):
            return answer
        return StreamingResponse(
            self._frames(answer), media_type="text/event-stream", headers={"x-request-id": "req_7"}
        )

    async def _frames(self, chunks: Sequence[Any]) -> AsyncIterator[str]:
        finished = False
        try:
            for chunk in chunks:
                if isinstance(chunk, threading.Event):
                    await to_thread.run_sync(chunk.wait, 30, abandon_on_cancel=True)
                else:
                    yield chunk if isinstance(chunk, str) else f"data: {json.dumps(chunk)}\n\n"
            finished = True
        finally:
            if not finished:
                self.left.set()

    async def models(self, http: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "scripted", "context_length": CONTEXT}]})


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def ended(reason: str = "stop", cached: int = 0) -> list[Any]:
    """The last chunks of an answer: why it ended, what it used, and the end of the stream."""
    used = {
        "prompt_tokens": 4000,
        "completion_tokens": 1000,
        "total_tokens": 5000,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    last = {"index": 0, "delta": {}, "finish_reason": reason}
    return [{"choices": [last]}, {"choices": [], "usage": used}, "data: [DONE]\n\n"]


@contextmanager
def scripted_server() -> Iterator[Scripted]:
    script = Scripted()
    app = Starlette(
        routes=[
            *web.routes(),
            Route("/v1/models", script.models),
            Route("/v1/chat/completions", script.chat, methods=["POST"]),
        ]
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", ws="none"))
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_for(lambda: server.started)
            script.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            yield script
        finally:
            server.should_exit = True
            thread.join(10)
