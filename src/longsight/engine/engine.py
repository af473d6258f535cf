"""The engine: requests in, tokens out, one step at a time. One thread; driver.py gives it one in the background."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from longsight.engine.errors import InvalidRequestError, StepFailedError
from longsight.engine.memory import available_bytes, plan_pages
from longsight.engine.pages import PageAllocator
from longsight.engine.request import FinishReason, Request, StepStats, Update
from longsight.engine.runner import Runner
from longsight.engine.scheduler import Scheduler, Work
from longsight.engine.text import Decoder, TextStream

if TYPE_CHECKING:
    from longsight.model import Model

log = logging.getLogger("longsight")


class Engine:
    """Runs many requests over one model and one page pool.

    tokenizer: turns tokens into text and finds stop strings; without one, updates carry tokens only.
    max_model_len: tokens of prompt + answer per request; None = the model's limit, or what the pages hold.
    kv_bytes: memory for pages (kv_bytes // config.page_bytes() of them); None = what the longest request needs.
    chunk_tokens: prompt tokens per step. max_running: requests that run at once.
    on_step: called after each step with its StepStats.
    Raises EngineConfigError if the numbers do not go together.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Decoder | None = None,
        *,
        max_model_len: int | None = None,
        kv_bytes: int | None = None,
        chunk_tokens: int = 2048,
        max_running: int = 8,
        on_step: Callable[[StepStats], None] | None = None,
    ) -> None:
        config = model.config
        self.model, self.tokenizer, self.on_step = model, tokenizer, on_step
        self.page_bytes = config.page_bytes(model.dtype)
        pages, self.max_model_len = plan_pages(
            page_bytes=self.page_bytes,
            block_size=config.block_size,
            context_limit=config.max_position_embeddings,
            max_model_len=max_model_len,
            kv_bytes=kv_bytes,
            available=available_bytes(),
        )
        self.pages = PageAllocator(pages)
        self.scheduler = Scheduler(
            self.pages,
            block_size=config.block_size,
            max_model_len=self.max_model_len,
            chunk_tokens=chunk_tokens,
            max_running=max_running,
        )
        self.runner = Runner(
            model,
            pages=pages,
            block_size=config.block_size,
            max_running=max_running,
            max_blocks=self.scheduler.pages_for(self.max_model_len),
        )

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def check(self, request: Request) -> None:
        """Raise InvalidRequestError or ContextLengthError for a request that can never run. Any thread may ask."""
        vocab = self.model.config.vocab_size
        ids = np.frombuffer(request.prompt, dtype=np.int32)
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocab:
            bad = low if low < 0 else high
            raise InvalidRequestError(
                f"token id {bad} is not in the vocabulary; ids run from 0 to {vocab - 1}", "prompt"
            )
        if request.params.stop and self.tokenizer is None:
            raise InvalidRequestError("stop strings need a tokenizer, and this engine has none", "stop")
        self.scheduler.check(len(request.prompt), request.params.max_tokens)

    def add(self, request: Request) -> None:
        """Queue a request. Raises what `check` raises."""
        self.check(request)
        if self.tokenizer is not None:
            request.text = TextStream(self.tokenizer, request.params.stop)
        self.scheduler.add(request)

    def cancel(self, request: Request) -> None:
        """End a request, waiting or running, and free its pages at once. Harmless if it has ended."""
        self.scheduler.finish(request, "cancelled")

    def step(self) -> list[Update]:
        """Run one step and say what it did for each request in it. A step that raises ends its own requests only."""
        work = self.scheduler.schedule()
        if not work:
            return []
        started = time.perf_counter()
        try:
            sampled = iter(self.runner.run(work))
        except Exception as error:
            log.exception("a step failed; the requests in it end (%d)", len(work))
            return [self._fail(w.request, error) for w in work]
        seconds = time.perf_counter() - started
        updates = [self._advance(w, next(sampled)) if w.samples else self._advance_prompt(w) for w in work]
        if self.on_step is not None:
            self.on_step(self._stats(work, seconds))
        return updates

    def generate(self, request: Request) -> Iterator[Update]:
        """Add one request and step until it ends, yielding its updates. Closing the iterator cancels it."""
        self.add(request)
        try:
            while not request.finished:
                yield from (update for update in self.step() if update.request is request)
        finally:
            self.cancel(request)

    def _advance_prompt(self, work: Work) -> Update:
        work.request.computed = work.end
        return Update(work.request, processed=work.end)

    def _advance(self, work: Work, token: int | None) -> Update:
        request = work.request
        request.computed = work.end
        if token is None:
            return self._fail(request, FloatingPointError("the model's logits are not finite"))
        request.output.append(token)
        reason = self._finish_reason(request, token)
        try:
            text, stopped = _new_text(request, token, reason)
        except Exception as error:
            log.exception("a token could not be turned into text; its request ends")
            return self._fail(request, error)
        reason = "stop" if stopped else reason
        if reason is not None:
            self.scheduler.finish(request, reason)
        return Update(request, text, token, len(request.prompt), reason)

    def _finish_reason(self, request: Request, token: int) -> FinishReason | None:
        if token in self.model.config.eos_token_ids and not request.params.ignore_eos:
            return "stop"
        return "length" if len(request.output) >= request.params.max_tokens else None

    def _fail(self, request: Request, cause: Exception) -> Update:
        error = StepFailedError(f"the step that this request was in failed: {type(cause).__name__}: {cause}")
        error.__cause__ = cause
        self.scheduler.finish(request, "error")
        return Update(request, processed=min(request.computed, len(request.prompt)), finish_reason="error", error=error)

    def _stats(self, work: Sequence[Work], seconds: float) -> StepStats:
        decoding = sum(w.is_decode for w in work)
        return StepStats(
            prompt_tokens=sum(w.length for w in work if not w.is_decode),
            decode_tokens=decoding,
            context=max(w.end for w in work),
            seconds=seconds,
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
        )


def _new_text(request: Request, token: int, reason: FinishReason | None) -> tuple[str, bool]:
    """What a token adds to the visible text, and whether a stop string ended it."""
    if request.text is None:
        return "", False
    # "stop" at this point is the end-of-sequence token: it ends the answer and is no part of its text.
    text = "" if reason == "stop" else request.text.push(token)
    if reason is not None and not request.text.stopped:
        text += request.text.flush()
    return text, request.text.stopped
