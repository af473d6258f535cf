"""The demo's two ends: the real server on a free port, and the official client that asks it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from openai import OpenAI, OpenAIError

from longsight.chat.template import ChatTemplate
from longsight.cli.demo_errors import DemoFailedError
from longsight.cli.demo_puzzle import Puzzle
from longsight.cli.progress import ProgressBar
from longsight.engine import Engine, EngineDriver, Request, StepStats
from longsight.model.tokenizer import Tokenizer
from longsight.server.app import create_app
from longsight.server.listen import listen
from longsight.server.service import Service

ANSWER_TOKENS = 64
MODEL_ID = "longsight"


@dataclass
class Run:
    """What the client saw and the engine measured. first_token, last_token: seconds from the request."""

    answer: str = ""
    first_token: float = 0.0
    last_token: float = 0.0
    steps: list[StepStats] = field(default_factory=list)


@contextmanager
def serving(engine: Engine, tokenizer: Tokenizer, template: ChatTemplate | None) -> Iterator[tuple[str, list[Request]]]:
    """The real server on a free port of the loopback address; its requests, which record what they select."""
    requests: list[Request] = []

    class RecordingService(Service):
        def requests(self, *args: Any, **kwargs: Any) -> list[Request]:
            made = super().requests(*args, **kwargs)
            for request in made:
                request.record_selection = True
            requests.extend(made)
            return made

    driver = EngineDriver(engine)
    service = RecordingService(driver, tokenizer, MODEL_ID, template)
    config = uvicorn.Config(create_app(service), log_level="warning", access_log=False, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", requests
        finally:
            server.should_exit = True
            thread.join(10)
            driver.close(5)


def ask(url: str, puzzle: Puzzle, run: Run) -> None:
    """One streamed request through the official client. Raises DemoFailedError with what the server said."""
    client = OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=24 * 3600)
    started = time.perf_counter()
    try:
        with ProgressBar("reading") as bar:
            for text, progress in (_chat if puzzle.chat else _completion)(client, puzzle.text):
                now = time.perf_counter() - started
                if progress:
                    done, total = progress["processed"], progress["total"]
                    bar.update(done, total, f"{done / now:,.0f} tokens/s")
                if text is not None:
                    if not run.first_token:
                        run.first_token = now
                        bar.stop()
                    run.answer += text
                    run.last_token = now
    except OpenAIError as error:
        raise DemoFailedError(f"the server did not answer: {error}") from error


Event = tuple[str | None, Any]  # text, which may be empty, of what the model said; progress of reading


def _chat(client: OpenAI, content: str) -> Iterator[Event]:
    stream = client.chat.completions.create(
        model=MODEL_ID,
        messages=[{"role": "user", "content": content}],
        max_tokens=ANSWER_TOKENS,
        temperature=0,
        reasoning_effort="none",
        stream=True,
        extra_body={"return_progress": True},
    )
    for chunk in stream:
        text = "".join(choice.delta.content or "" for choice in chunk.choices) if chunk.choices else None
        yield text, (chunk.model_extra or {}).get("prompt_progress")


def _completion(client: OpenAI, prompt: str) -> Iterator[Event]:
    stream = client.completions.create(
        model=MODEL_ID,
        prompt=prompt,
        max_tokens=ANSWER_TOKENS,
        temperature=0,
        stream=True,
        extra_body={"return_progress": True},
    )
    for chunk in stream:
        text = "".join(choice.text for choice in chunk.choices) if chunk.choices else None
        yield text, (chunk.model_extra or {}).get("prompt_progress")
