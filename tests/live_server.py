"""The server on a real socket, in a thread, over the real engine and a stand-in network."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai
import uvicorn
from starlette.types import ASGIApp

from fake_model import ByteTokenizer, FakeModel, LookupModel, byte_grammars
from longsight.chat.template import ChatTemplate
from longsight.engine import Engine, EngineDriver
from longsight.model import Model
from longsight.server.access import Sink
from longsight.server.app import create_app
from longsight.server.listen import listen
from longsight.server.proxy import TrustedProxies
from longsight.server.service import Service, Tokenizer
from longsight.server.tls import Tls

TEMPLATE = "{{ messages | map(attribute='content') | join('\n') }}"


@dataclass
class LiveServer:
    url: str
    engine: Engine
    model: Any
    service: Service

    @contextmanager
    def client(self, **options: Any) -> Iterator[openai.OpenAI]:
        options = {"max_retries": 0, "timeout": 30, **options}
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", **options) as client:
            yield client

    def wait_until_idle(self, seconds: float = 10) -> None:
        """Until no request is left and every page is free."""
        wait_for(lambda: not self.engine.has_work and self.engine.pages.used == 0, seconds)


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.005)


@contextmanager
def live_server(
    model: FakeModel | Model | None = None,
    *,
    pages: int = 64,
    chunk_tokens: int = 64,
    max_running: int = 4,
    max_queue: int = 8,
    template: str | None = TEMPLATE,
    speculate: bool = True,
    wrap: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    tokenizer: Tokenizer | None = None,
    sinks: Sequence[Sink] = (),
    root_path: str = "",
    trusted_proxies: TrustedProxies | None = None,
    tls: Tls | None = None,
    **service_options: Any,
) -> Iterator[LiveServer]:
    model = model or LookupModel()
    tokenizer = tokenizer or ByteTokenizer()
    engine = Engine(
        model,  # type: ignore[arg-type]
        tokenizer,
        kv_bytes=pages * model.config.page_bytes(model.dtype),
        chunk_tokens=chunk_tokens,
        max_running=max_running,
        speculate=speculate,
        grammars=byte_grammars(),
    )
    driver = EngineDriver(engine, max_queue=max_queue)
    chat_template = ChatTemplate(template) if template is not None else None
    service = Service(driver, tokenizer, "tiny", chat_template, **service_options)
    app = create_app(service, sinks, root_path=root_path, trusted_proxies=trusted_proxies)
    server = uvicorn.Server(
        uvicorn.Config(
            wrap(app),
            log_level="critical",
            lifespan="off",
            ws="none",
            proxy_headers=False,
            **(tls.options() if tls else {}),
        )
    )
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_for(lambda: server.started)
        scheme = "https" if tls else "http"
        yield LiveServer(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", engine, model, service)
    finally:
        server.should_exit = True
        thread.join(10)
        driver.close(10)
        listener.close()
    assert engine.pages.used == 0, "pages leaked"
