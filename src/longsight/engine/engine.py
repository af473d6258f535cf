"""The engine: requests in, tokens out, one step at a time. One thread; driver.py gives it one in the background."""

from __future__ import annotations

import heapq
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longsight.engine.counters import Counters
from longsight.engine.draft import Drafter
from longsight.engine.errors import DeadlineExceededError, EngineConfigError, InvalidRequestError, StepFailedError
from longsight.engine.kv_dir import KvDirectory
from longsight.engine.memory import available_bytes, disk_bytes, plan_pages
from longsight.engine.pages import PagePool
from longsight.engine.prefix_cache import PrefixCache
from longsight.engine.repetition import is_stuck
from longsight.engine.request import FinishReason, Request, StepStats, Update
from longsight.engine.runner import Runner
from longsight.engine.sampler import Sampled, SamplingState
from longsight.engine.scheduler import Scheduler, StepCost, Work
from longsight.engine.text import Decoder, TextStream
from longsight.ops import kernels

if TYPE_CHECKING:
    from longsight.engine.grammar import GrammarCompiler
    from longsight.model import Model

log = logging.getLogger("longsight")


class Engine:
    """Runs many requests over one model and one page pool.

    tokenizer: turns tokens into text and finds stop strings; without one, updates carry tokens only.
    max_model_len: tokens of prompt + answer per request; None = the model's limit, or what the pages hold.
    kv_bytes: memory for pages (kv_bytes // config.page_bytes() of them); None = what the longest request needs.
    chunk_tokens: prompt tokens per step. max_running: requests that run at once.
    prefix_cache: keep what finished and running requests have read, for others that begin alike.
    speculate: guess tokens by prompt lookup and verify them (draft.py); changes speed, never the answer.
    screen: keep 8-bit copies of index keys for long scans, where there is room; changes speed and page_bytes only.
    grammars: compiles the grammars that requests ask for; None refuses such requests.
    kv_dir: keep the pages in files of this directory, so that contexts may be larger than memory and prefixes outlive
    the process; fingerprint: of the checkpoint (model/fingerprint.py), so that no other model's pages are used.
    on_step: called after each step with its StepStats. counters: what it has done so far.
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
        max_running: int = 16,
        prefix_cache: bool = True,
        speculate: bool = True,
        screen: bool = True,
        grammars: GrammarCompiler | None = None,
        kv_dir: Path | None = None,
        fingerprint: bytes = b"",
        on_step: Callable[[StepStats], None] | None = None,
    ) -> None:
        config = model.config
        self.model, self.tokenizer, self.on_step, self.speculate = model, tokenizer, on_step, speculate
        self.grammars, self.counters = grammars, Counters()
        plan = partial(
            plan_pages,
            block_size=config.block_size,
            context_limit=config.max_position_embeddings,
            max_model_len=max_model_len,
            kv_bytes=kv_bytes,
            available=available_bytes() if kv_dir is None else disk_bytes(kv_dir),
            on_disk=kv_dir is not None,
        )
        self.page_bytes = config.page_bytes(model.dtype)
        pages, self.max_model_len = plan(page_bytes=self.page_bytes)
        self.screened = screen and model.backend.screens(model.dtype, self.max_model_len)
        if self.screened:
            try:
                self.page_bytes = config.page_bytes(model.dtype, screened=True)
                pages, self.max_model_len = plan(page_bytes=self.page_bytes)
            except EngineConfigError:  # what was asked for goes before speed
                self.page_bytes, self.screened = config.page_bytes(model.dtype), False
        # The nearest first. Most requests end long before: they are not kept for it.
        self._deadlines: list[tuple[float, int, weakref.ref[Request]]] = []
        self.pages = PagePool(pages)
        self.kv_dir = None
        if kv_dir is not None:
            layouts = [
                config.page_layout(layer, model.dtype, screened=self.screened) for layer in range(config.num_layers)
            ]
            # Keys differ in their last bits between backends and instruction sets, and answers must not.
            mark = fingerprint + f"{model.backend.NAME} {kernels.isa() if model.backend.NAME == 'cpu' else ''}".encode()
            self.kv_dir = KvDirectory.open(kv_dir, fingerprint=mark, layouts=layouts, pages=pages)
        self.prefix_cache = PrefixCache(
            self.pages,
            config.block_size,
            on_stored=self.kv_dir.record if self.kv_dir else None,
            intact=self.kv_dir.intact if self.kv_dir else None,
        )
        if self.kv_dir is not None and prefix_cache:
            self.prefix_cache.seed(self.kv_dir.stored())
        self.runner = Runner(
            model,
            pages=pages,
            page_bytes=self.page_bytes,
            block_size=config.block_size,
            max_running=max_running,
            max_blocks=-(-self.max_model_len // config.block_size),
            screened=self.screened,
            cache=self.kv_dir.cache if self.kv_dir else None,
        )
        self.scheduler = Scheduler(
            self.pages,
            self.prefix_cache,
            max_model_len=self.max_model_len,
            chunk_tokens=chunk_tokens,
            max_running=max_running,
            copy_page=self.runner.copy_page,
            cost=StepCost.of_model(config.shape()),
            reuse=prefix_cache,
        )

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def check(self, request: Request) -> None:
        """Raise InvalidRequestError or ContextLengthError for a request that can never run. Any thread may ask.

        A grammar is compiled here, once, so that a hostile one costs the asking thread and not the engine's.
        """
        if request.finished or request.sampling is not None:
            raise InvalidRequestError(f"request {request.id} has been given to an engine before; make a new one")
        vocab = self.model.config.vocab_size
        ids = np.frombuffer(request.prompt, dtype=np.int32)
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocab:
            bad = low if low < 0 else high
            raise InvalidRequestError(
                f"token id {bad} is not in the vocabulary; ids run from 0 to {vocab - 1}", "prompt"
            )
        for name, tokens in (
            ("logit_bias", request.params.logit_bias or ()),
            ("stop_token_ids", request.params.stop_token_ids),
            ("suppress_tokens", request.params.suppress_tokens),
        ):
            for token in tokens:
                if not 0 <= token < vocab:
                    raise InvalidRequestError(f"{name} names token {token}; ids run from 0 to {vocab - 1}", name)
        if len(set(request.params.suppress_tokens)) == vocab:
            raise InvalidRequestError(
                f"suppress_tokens names all {vocab} tokens; at least one must be left", "suppress_tokens"
            )
        if request.params.grammar is not None:
            if self.grammars is None:
                raise InvalidRequestError(
                    "a grammar needs the checkpoint's tokenizer, and this engine has none", "grammar"
                )
            if request.matcher is None:
                request.matcher = self.grammars.matcher(request.params.grammar)
        if request.params.stop and self.tokenizer is None:
            raise InvalidRequestError("stop strings need a tokenizer, and this engine has none", "stop")
        self.scheduler.check(len(request.prompt), request.max_tokens)

    def add(self, request: Request) -> None:
        """Queue a request. Raises what `check` raises."""
        self.check(request)
        if request.arrived is None:
            request.arrived = time.monotonic()
        if self.tokenizer is not None:
            request.text = TextStream(self.tokenizer, request.params.stop)
        ends = () if request.params.ignore_eos else self.model.config.eos_token_ids
        request.stop_ids = frozenset((*ends, *request.params.stop_token_ids))
        request.sampling = SamplingState(
            request.params, request.prompt, stop_ids=request.stop_ids, matcher=request.matcher
        )
        if self.speculate and not request.record_selection and request.matcher is None:
            request.drafter = Drafter()
            request.drafter.extend(request.prompt)
        self.scheduler.add(request)
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, request.id, weakref.ref(request)))

    def cancel(self, request: Request) -> None:
        """End a request, waiting or running, and free its pages at once. Harmless if it has ended."""
        self.scheduler.finish(request, "cancelled")

    def close(self) -> None:
        """Let go of the cache directory, if there is one. The engine must not run any more."""
        if self.kv_dir is not None:
            self.kv_dir.close()

    def step(self) -> list[Update]:
        """Run one step and say what it did for each request in it. A step that raises ends its own requests only."""
        started = time.perf_counter()
        late = self._give_up_late_ones() if self._deadlines else []
        work = self.scheduler.schedule()
        if not work:
            return late
        try:
            sampled = iter(self.runner.run(work))
        except Exception as error:
            log.exception("a step failed; the requests in it end (%d)", len(work))
            self.counters.failed_steps += 1
            return late + [self._fail(w.request, error) for w in work]
        updates = [self._advance(w, next(sampled)) if w.samples else self._advance_prompt(w) for w in work]
        seconds = time.perf_counter() - started
        self.counters.steps += 1
        self.counters.step_seconds += seconds
        self.counters.forward_seconds += self.runner.forward_seconds
        if self.on_step is not None:
            self.on_step(self._stats(work, updates, seconds))
        return late + updates

    def generate(self, request: Request) -> Iterator[Update]:
        """Add one request and step until it ends, yielding its updates. Closing the iterator cancels it."""
        self.add(request)
        try:
            while not request.finished:
                yield from (update for update in self.step() if update.request is request)
        finally:
            self.cancel(request)

    def _give_up_late_ones(self) -> list[Update]:
        updates: list[Update] = []
        while self._deadlines and self._deadlines[0][0] <= time.monotonic():
            request = heapq.heappop(self._deadlines)[2]()
            if request is not None and not request.finished:
                error = DeadlineExceededError(f"the deadline passed after {len(request.output)} generated tokens")
                updates.append(self._end(request, error))
        return updates

    def _advance_prompt(self, work: Work) -> Update:
        self.counters.prompt_tokens += work.length
        self.scheduler.advance(work.request, work.end)
        return Update(work.request, processed=min(work.end, len(work.request.prompt)))

    def _advance(self, work: Work, sampled: list[Sampled] | Exception) -> Update:
        request = work.request
        if isinstance(sampled, Exception):
            return self._fail(request, sampled)
        if not request.output:
            request.first_token = time.monotonic()
            self.counters.prompt_tokens += work.length
        if request.drafter is not None and work.drafts:
            request.drafter.verified(len(work.drafts), len(sampled) - 1)
            self.counters.drafted += len(work.drafts)
            self.counters.accepted += len(sampled) - 1
        tokens: list[int] = []
        text, reason = "", None
        try:
            for token, known in sampled:
                tokens.append(token)
                request.output.append(token)
                if known is not None:
                    request.logprobs.append(known)
                reason = _finish_reason(request, token)
                if request.text is not None:
                    text += _new_text(request.text, None if token in request.stop_ids else token, reason)
                    reason = "stop" if request.text.stopped else reason
                if reason is not None:
                    break
        except Exception as error:
            log.exception("a token could not be turned into text; its request ends")
            return self._fail(request, error)
        self.counters.generated_tokens += len(tokens)
        if request.drafter is not None:
            request.drafter.extend(tokens)
        # Of the tokens just found all but the newest were drafted, and so are in the pages already.
        self.scheduler.advance(request, work.end + len(tokens) - 1)
        if reason is not None:
            self.scheduler.finish(request, reason)
        logprobs = request.logprobs[len(request.logprobs) - len(tokens) :] if request.logprobs else ()
        return Update(request, text, tokens, len(request.prompt), reason, logprobs=logprobs)

    def _fail(self, request: Request, cause: Exception) -> Update:
        error = StepFailedError(f"the step that this request was in failed: {type(cause).__name__}: {cause}")
        error.__cause__ = cause
        return self._end(request, error)

    def _end(self, request: Request, error: Exception) -> Update:
        processed = min(request.computed, len(request.prompt))
        self.scheduler.finish(request, "error")
        return Update(request, processed=processed, finish_reason="error", error=error)

    def _stats(self, work: Sequence[Work], updates: Sequence[Update], seconds: float) -> StepStats:
        prompt_tokens = decode_tokens = context = drafted = accepted = 0
        for (request, start, length, drafts, _), update in zip(work, updates, strict=True):
            context = max(context, start + length)
            if start >= len(request.prompt):
                decode_tokens += len(update.tokens)
                if drafts:
                    drafted += len(drafts)
                    accepted += max(len(update.tokens) - 1, 0)
            else:
                prompt_tokens += length
        return StepStats(
            prompt_tokens=prompt_tokens,
            decode_tokens=decode_tokens,
            context=context,
            seconds=seconds,
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            drafted=drafted,
            accepted=accepted,
            kernel_seconds=self.runner.forward_seconds,
        )


def _finish_reason(request: Request, token: int) -> FinishReason | None:
    """Why a request that has just been given `token` ends, if it does."""
    if token in request.stop_ids or (request.matcher is not None and request.matcher.complete):
        return "stop"
    if len(request.output) >= request.max_tokens:
        return "length"
    most = request.params.max_repetition
    # Looking costs as much as many tokens do, so it is done after every 32nd: whatever step that came in.
    if most is not None and len(request.output) % 32 == 0 and is_stuck(request.output, most):
        return "length"
    return None


def _new_text(stream: TextStream, token: int | None, reason: FinishReason | None) -> str:
    """What a token (None: one that only ends) adds to the visible text. A stop string sets `stream.stopped`."""
    text = "" if token is None else stream.push(token)
    if reason is not None and not stream.stopped:
        text += stream.flush()
    return text
