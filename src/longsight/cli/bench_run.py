"""The runs of a bench: prompts made, the server warmed up, requests sent as due, what came noted."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from longsight.cli.bench_errors import BenchError
from longsight.cli.bench_prompts import PromptMaker, arrival_times
from longsight.cli.bench_sample import Sample, StreamError, StreamReader, describe

__all__ = ["Bench", "BenchError", "Plan", "Run"]
Progress = Callable[[str, int, int], None]
Kind = Literal["concurrency", "request_rate"]
PROBE_WORDS = (100, 300)
HINTS = {
    401: "; give a key as --api-key or OPENAI_API_KEY",
    404: "; is the URL that of the API, and the model's name right?",
}


@dataclass(frozen=True)
class Plan:
    """What to measure. loads: requests under way, or requests a second; a run for each, with each of input_lens."""

    url: str
    kind: Kind = "concurrency"
    loads: Sequence[float] = (1,)
    input_lens: Sequence[int] = (1024,)
    output_len: int = 128
    num_prompts: int = 32
    num_warmups: int = 1
    shared_prefix: int = 0
    ignore_eos: bool = True
    seed: int = 0
    timeout: float = 600.0
    model: str | None = None
    api_key: str | None = None

    @property
    def api(self) -> str:
        """The base URL of the OpenAI API, without a slash at its end."""
        url = self.url.rstrip("/")
        return url if url.endswith("/v1") else f"{url}/v1"


@dataclass
class Run:
    """One load and prompt length. planned: requests that it was to have; samples: those that were due so far."""

    kind: Kind
    load: float
    input_len: int
    planned: int
    samples: list[Sample] = field(default_factory=list)


class Bench:
    """`run` measures; `runs` are what it has so far, also after an interrupt. clock: seconds."""

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.perf_counter) -> None:
        self.plan, self._clock = plan, clock
        self.runs: list[Run] = []
        self.model = plan.model or ""
        self.exact = False  # whether the server counts tokens for us

    async def run(self, progress: Progress = lambda what, done, total: None) -> None:
        """Raises BenchError if the server cannot be asked at all."""
        plan = self.plan
        headers = {"authorization": f"Bearer {plan.api_key}"} if plan.api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(headers=headers, timeout=plan.timeout, limits=limits) as http:
            self._http = http
            self.model = plan.model or await self._first_model()
            maker = await self._prompt_maker()
            for length in plan.input_lens:
                for load in plan.loads:
                    await self._measure(maker, length, load, progress)

    async def _measure(self, maker: PromptMaker, length: int, load: float, progress: Progress) -> None:
        plan = self.plan
        name = f"{length:,} tokens, {load:g} {'at once' if plan.kind == 'concurrency' else 'a second'}"
        bodies = []
        for i in range(plan.num_prompts):
            bodies.append(self._body(await maker.make(length, f"{load:g}/{i}"), plan.output_len))
            progress(f"{name}: prompts", i + 1, plan.num_prompts)
        for i in range(plan.num_warmups):
            warmup = self._body(await maker.make(length, f"{load:g}/warm-up/{i}"), plan.output_len)
            await self._ask(warmup, sample := Sample(self._clock()))
            if sample.error is not None:
                raise BenchError(f"the warm-up request failed: {sample.detail}")
        run = Run(plan.kind, load, length, plan.num_prompts)
        self.runs.append(run)
        done = 0

        async def one(body: bytes, due: float) -> None:
            nonlocal done
            run.samples.append(sample := Sample(due))
            await self._ask(body, sample)
            done += 1
            progress(name, done, plan.num_prompts)

        if plan.kind == "concurrency":
            await self._closed_loop(bodies, int(load), one)
        else:
            await self._open_loop(bodies, load, one)

    async def _closed_loop(self, bodies: list[bytes], concurrency: int, one: Callable[..., Any]) -> None:
        waiting = iter(bodies)

        async def client() -> None:
            for body in waiting:
                await one(body, self._clock())

        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(bodies))):
                group.create_task(client())

    async def _open_loop(self, bodies: list[bytes], rate: float, one: Callable[..., Any]) -> None:
        """Each request is due at its own time, whatever became of those before, and is measured from then."""
        start = self._clock()
        async with asyncio.TaskGroup() as group:
            for body, at in zip(bodies, arrival_times(self.plan.seed, rate, len(bodies)), strict=True):
                await asyncio.sleep(max(start + at - self._clock(), 0))
                group.create_task(one(body, start + at))

    async def _ask(self, body: bytes, sample: Sample) -> None:
        reader, url = StreamReader(sample), f"{self.plan.api}/chat/completions"
        sample.sent = self._clock()
        try:
            # httpx limits the wait for each piece; this, the whole.
            async with asyncio.timeout(self.plan.timeout), self._http.stream("POST", url, content=body) as answer:
                if answer.status_code != 200:
                    text = (await answer.aread()).decode(errors="replace")
                    sample.error = f"HTTP {answer.status_code}"
                    sample.detail = f"{sample.error}: {_message(text)}{HINTS.get(answer.status_code, '')}"
                    return
                async for data in answer.aiter_bytes():
                    reader.feed(data, self._clock())
                reader.finish()
        except StreamError as error:
            sample.error = sample.detail = str(error)
        except (TimeoutError, httpx.TimeoutException):
            sample.error = sample.detail = f"no answer within {self.plan.timeout:g} s (--timeout)"
        except httpx.HTTPError as error:
            sample.error = type(error).__name__
            sample.detail = f"{type(error).__name__}: {error}"

    def _body(self, prompt: str, output_len: int) -> bytes:
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": output_len,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.plan.ignore_eos:
            fields["ignore_eos"] = True
        return json.dumps(fields).encode()

    async def _first_model(self) -> str:
        url = f"{self.plan.api}/models"
        try:
            answer = await self._http.get(url)
        except httpx.HTTPError as error:
            raise BenchError(f"{url} cannot be asked: {str(error) or type(error).__name__}") from error
        if answer.status_code != 200:
            hint = HINTS.get(answer.status_code, "")
            raise BenchError(f"{url} answers HTTP {answer.status_code}: {_message(answer.text)}{hint}")
        try:
            return str(answer.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise BenchError(f"{url} lists no model; name one with --model") from None

    async def _prompt_maker(self) -> PromptMaker:
        """Count with the server's /tokenize if it has one; else learn from usage how long words are."""
        maker = PromptMaker(self.plan.seed, self._count, self.plan.shared_prefix)
        try:
            maker.template_tokens = await self._count("") - 0.0
        except (httpx.HTTPError, BenchError):
            maker.count = None
        self.exact = maker.count is not None
        few, many = [await self._tokens_of(maker, number) for number in PROBE_WORDS]
        if few is not None and many is not None and many > few:
            maker.tokens_per_word = (many - few) / (PROBE_WORDS[1] - PROBE_WORDS[0])
            maker.template_tokens = max(few - PROBE_WORDS[0] * maker.tokens_per_word, 0.0)
        return maker

    async def _tokens_of(self, maker: PromptMaker, words: int) -> int | None:
        """Tokens of a request with so many words, as the server tells them."""
        text = await PromptMaker(self.plan.seed).make(words, "probe")
        if maker.count is not None:
            return await maker.count(text)
        await self._ask(self._body(text, 1), sample := Sample(self._clock()))
        if sample.error is not None and sample.prompt_tokens is None:
            raise BenchError(f"the first request failed: {sample.detail}")
        return sample.prompt_tokens

    async def _count(self, text: str) -> int:
        """Raises BenchError, or httpx's errors, if the server has no /tokenize as vLLM's."""
        fields = {"model": self.model, "messages": [{"role": "user", "content": text}]}
        answer = await self._http.post(f"{self.plan.api.removesuffix('/v1')}/tokenize", json=fields)
        try:
            return int(answer.raise_for_status().json()["count"])
        except (ValueError, LookupError, TypeError) as error:
            raise BenchError(f"/tokenize does not count: {error}") from error


def _message(text: str) -> str:
    try:
        return describe(json.loads(text))
    except ValueError:
        return " ".join(text.split())[:200]
