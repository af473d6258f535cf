"""The Python API: a model in this process, for scripts, notebooks and asyncio programs.

    from longsight import LLM, SamplingParams

    llm = LLM("path/to/checkpoint")
    for output in llm.generate(["One prompt", "Another"], SamplingParams(max_tokens=64, temperature=0)):
        print(output.outputs[0].text)

Every call goes to one engine on a thread of its own, so calls from several threads or tasks are batched together.
"""

from __future__ import annotations

import queue
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from longsight.chat import openai_messages
from longsight.chat.answer import AnswerReader
from longsight.chat.errors import ChatError, SchemaError
from longsight.chat.messages import Thinking
from longsight.chat.prepare import PreparedChat, prepare
from longsight.chat.prompt import ChatFormat
from longsight.chat.request import ChatRequest
from longsight.chat.template import ChatTemplate
from longsight.engine import (
    Engine,
    EngineDriver,
    InvalidRequestError,
    SamplingDefaults,
    SamplingParams,
    StepStats,
    Update,
)
from longsight.engine.defaults import CHAT_MAX_REPETITION
from longsight.engine.grammar import GrammarCompiler
from longsight.engine.request import Request, requests_for
from longsight.model import load_model
from longsight.model.built_in import is_built_in, model_dir
from longsight.model.fingerprint import fingerprint
from longsight.model.tokenizer import FILE, Tokenizer
from longsight.outputs import Generation, RequestOutput, StreamOutput

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]
Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A model, ready to answer.

    model: a MiniMax-M3 checkpoint directory, or the name of a built-in model: "embedded" (or None), a small one trained
    by recipes/embedded, which answers questions in the words of the text it is given and knows nothing about the world,
    or "constructed", written by formula, which goes on with what followed the best earlier match. A directory of such a
    name is given as a Path, or as "./constructed". dtype: torch.bfloat16 or torch.float32; None as the checkpoint says.
    backend: see `longsight.ops.choose`. max_model_len, kv_bytes, chunk_tokens, max_running, prefix_cache, speculate,
    kv_dir: see `longsight.engine.Engine`. max_queue: requests that may wait.
    Raises what loading raises: ConfigError, CheckpointError, UnsupportedError, EngineConfigError.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        dtype: torch.dtype | None = None,
        backend: str | None = None,
        max_model_len: int | None = None,
        kv_bytes: int | None = None,
        chunk_tokens: int = 2048,
        max_running: int = 16,
        max_queue: int = 1 << 16,
        prefix_cache: bool = True,
        speculate: bool = True,
        kv_dir: str | Path | None = None,
        on_step: Callable[[StepStats], None] | None = None,
    ) -> None:
        self._path = model_dir(model)
        network = load_model(self._path, dtype=dtype, backend=backend)
        self.tokenizer = Tokenizer.from_dir(self._path)
        self.engine = Engine(
            network,
            self.tokenizer,
            max_model_len=max_model_len,
            kv_bytes=kv_bytes,
            chunk_tokens=chunk_tokens,
            max_running=max_running,
            prefix_cache=prefix_cache,
            speculate=speculate,
            grammars=GrammarCompiler(
                self._path / FILE,
                vocab_size=network.config.vocab_size,
                eos_token_ids=network.config.eos_token_ids,
            ),
            kv_dir=None if kv_dir is None else Path(kv_dir),
            fingerprint=b"" if kv_dir is None else fingerprint(self._path),
            on_step=on_step,
        )
        self._defaults = SamplingDefaults.from_checkpoint(self._path)
        # Tokens of a chat answer without max_tokens.
        self.default_chat_tokens = self._defaults.chat_tokens(self.engine.max_model_len, built_in=is_built_in(model))
        self._driver = EngineDriver(self.engine, max_queue=max_queue)

    def get_default_sampling_params(self) -> SamplingParams:
        """What a call without SamplingParams uses: the checkpoint's own generation settings."""
        defaults = self._defaults
        return SamplingParams(temperature=defaults.temperature, top_p=defaults.top_p, top_k=defaults.top_k)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], sampling_params: Params = None, *, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        """Answer one prompt or many, texts or token ids, batched; in the order of the prompts.

        sampling_params: for all, or one for each. use_tqdm: a progress bar on stderr, where a terminal watches.
        Raises InvalidRequestError before anything runs if one prompt or parameter is wrong, and what a step raised.
        """
        return self._answer_all(self._plan(_each(prompts), sampling_params), use_tqdm)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[StreamOutput]:
        """The answer piece by piece. Leaving the loop ends the request."""
        return self._stream(*self._plan([prompt], sampling_params))

    async def agenerate(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> RequestOutput:
        """One prompt's answers, for asyncio; many at once through asyncio.gather are batched."""
        return await self._answer(*self._plan([prompt], sampling_params))

    def astream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> AsyncIterator[StreamOutput]:
        """`stream` for asyncio."""
        return self._astream(*self._plan([prompt], sampling_params))

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: Params = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] = "auto",
        thinking: Thinking = "adaptive",
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation or many, through the checkpoint's chat template.

        Each answer's `text` is what a user would see; what the model thought and the tools that it calls are in
        `reasoning` and `tool_calls`, and `raw_text` is all that it wrote. messages, tools, tool_choice: as in OpenAI's
        chat completions. thinking: disabled, enabled, or adaptive: as the model sees fit. Stop strings end the visible
        text only. Without max_tokens an answer may have `default_chat_tokens` tokens, and ends when it does nothing but
        repeat itself. Raises InvalidRequestError naming the message, tool or parameter that is wrong.
        """
        conversations = [messages] if not messages or isinstance(messages[0], Mapping) else messages
        plans = self._plan_chats(conversations, sampling_params, tools, tool_choice, thinking)  # type: ignore[arg-type]
        return self._answer_all(plans, use_tqdm)

    def chat_stream(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] = "auto",
        thinking: Thinking = "adaptive",
    ) -> Iterator[StreamOutput]:
        """`chat` for one conversation, piece by piece. Leaving the loop ends the request."""
        return self._stream(*self._plan_chats([messages], sampling_params, tools, tool_choice, thinking))

    async def achat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] = "auto",
        thinking: Thinking = "adaptive",
    ) -> RequestOutput:
        """`chat` for one conversation, for asyncio; many at once through asyncio.gather are batched."""
        return await self._answer(*self._plan_chats([messages], sampling_params, tools, tool_choice, thinking))

    def achat_stream(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] = "auto",
        thinking: Thinking = "adaptive",
    ) -> AsyncIterator[StreamOutput]:
        """`chat_stream` for asyncio."""
        return self._astream(*self._plan_chats([messages], sampling_params, tools, tool_choice, thinking))

    def render(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: Thinking = "adaptive",
    ) -> Sequence[int]:
        """The token ids of a conversation, by the checkpoint's template or, without one, in MiniMax-M3's format. Raises
        as `chat` does."""
        return self._prepare(messages, SamplingParams(), tools, "auto", thinking).prompt

    def close(self) -> None:
        """End what runs and free the pages."""
        self._driver.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def _chat_format(self) -> ChatFormat:
        return ChatFormat(self.tokenizer, ChatTemplate.from_checkpoint(self._path))

    def _plan(self, prompts: Sequence[Prompt], sampling_params: Params) -> list[_Plan]:
        each = self._params_of_each(prompts, sampling_params)
        tokens = [self.tokenizer.encode(p) if isinstance(p, str) else p for p in prompts]
        return [
            _Plan(
                p if isinstance(p, str) else None,
                [Generation(request, AnswerReader(), i) for i, request in enumerate(requests_for(t, params))],
            )
            for p, t, params in zip(prompts, tokens, each, strict=True)
        ]

    def _plan_chats(
        self,
        conversations: Sequence[Messages],
        sampling_params: Params,
        tools: Sequence[Mapping[str, Any]] | None,
        tool_choice: str | Mapping[str, Any],
        thinking: Thinking,
    ) -> list[_Plan]:
        plans = []
        each = self._params_of_each(conversations, sampling_params)
        for messages, params in zip(conversations, each, strict=True):
            chat = self._prepare(messages, params, tools, tool_choice, thinking)
            params = chat.params
            if params.max_tokens is None:
                room = self.engine.max_model_len - len(chat.prompt)
                length = max(min(self.default_chat_tokens, room), params.min_tokens, 1)
                params = replace(params, max_tokens=length, max_repetition=CHAT_MAX_REPETITION)
            requests = requests_for(chat.prompt, params)
            plans.append(_Plan(None, [Generation(r, chat.reader(AnswerReader), i) for i, r in enumerate(requests)]))
        return plans

    def _prepare(
        self,
        messages: Messages,
        params: SamplingParams,
        tools: Sequence[Mapping[str, Any]] | None,
        tool_choice: str | Mapping[str, Any],
        thinking: Thinking,
    ) -> PreparedChat:
        if thinking not in (modes := get_args(Thinking)):
            raise InvalidRequestError(f"thinking is {thinking!r}; it must be one of {', '.join(modes)}", "thinking")
        try:
            declared = openai_messages.tools(tools)
            request = ChatRequest(
                messages=openai_messages.messages(messages),
                params=replace(params, stop=()),
                tools=declared,
                tool_choice=openai_messages.tool_choice(tool_choice, declared),
                thinking=thinking,
                stop=params.stop,
                answer_format=params.grammar,
            )
            return prepare(request, self._chat_format, self.tokenizer.added_tokens)
        except ChatError as error:
            raise InvalidRequestError(str(error), error.path) from error
        except SchemaError as error:
            raise InvalidRequestError(str(error), "grammar" if error.tool is None else "tools") from error

    def _params_of_each(self, prompts: Sequence[object], sampling_params: Params) -> Sequence[SamplingParams]:
        if sampling_params is None:
            sampling_params = self.get_default_sampling_params()
        each = [sampling_params] * len(prompts) if isinstance(sampling_params, SamplingParams) else sampling_params
        if len(each) != len(prompts):
            raise InvalidRequestError(
                f"{len(prompts)} prompts came with {len(each)} SamplingParams; give one for all, or one for each"
            )
        return each

    def _answer_all(self, plans: Sequence[_Plan], use_tqdm: bool) -> list[RequestOutput]:
        generations = [g for plan in plans for g in plan.generations]
        with _Bar(len(generations), use_tqdm) as bar:
            for update, _ in self._run(generations):
                bar.show(sum(g.finished for g in generations), update)
        return [plan.output() for plan in plans]

    def _stream(self, plan: _Plan) -> Iterator[StreamOutput]:
        for _, piece in self._run(plan.generations):
            if piece is not None:
                yield piece

    async def _answer(self, plan: _Plan) -> RequestOutput:
        async for _ in self._astream(plan):
            pass
        return plan.output()

    def _run(self, generations: Sequence[Generation]) -> Iterator[tuple[Update, StreamOutput | None]]:
        """Each update with its piece of an answer, until all answers have ended."""
        by_request = {g.request: g for g in generations}
        updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
        self._driver.listen(list(by_request), updates.put)
        try:
            unfinished = len(generations)
            while unfinished:
                update = updates.get()
                generation = by_request[update.request]
                if generation.finished:
                    continue  # what was generated before the engine heard of the end
                piece = generation.take(update)
                if generation.finished:
                    unfinished -= 1
                    self._driver.cancel([update.request])
                yield update, piece
        finally:
            self._driver.cancel(list(by_request))

    async def _astream(self, plan: _Plan) -> AsyncIterator[StreamOutput]:
        by_request = {g.request: g for g in plan.generations}
        stream = self._driver.submit(list(by_request))
        try:
            unfinished = len(by_request)
            while unfinished:
                update = await stream.next()
                if update is None or (generation := by_request[update.request]).finished:
                    continue
                piece = generation.take(update)
                if generation.finished:
                    unfinished -= 1
                    self._driver.cancel([update.request])
                if piece is not None:
                    yield piece
        finally:
            stream.close()


class _Plan(NamedTuple):
    """prompt: its text, if it came as one. generations: one for each answer."""

    prompt: str | None
    generations: Sequence[Generation]

    def output(self) -> RequestOutput:
        first = self.generations[0].request
        return RequestOutput(self.prompt, first.prompt, [g.output for g in self.generations], first.cached_tokens)


def _each(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """A list of prompts from one (a text, or token ids) or many."""
    single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
    return [prompts] if single else prompts  # type: ignore[list-item, return-value]


class _Bar:
    """Answers done, and the tokens going by."""

    def __init__(self, total: int, wanted: bool) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._progress = Progress(
            *columns, TimeElapsedColumn(), console=console, disable=not (wanted and console.is_terminal)
        )
        self._task = self._progress.add_task("", total=total)
        self._read = self._written = 0
        self._processed: dict[Request, int] = {}

    def show(self, done: int, update: Update) -> None:
        self._read += max(update.processed - self._processed.get(update.request, 0), 0)
        self._processed[update.request] = max(update.processed, self._processed.get(update.request, 0))
        self._written += len(update.tokens)
        text = f"{self._read:,} tokens read, {self._written:,} written"
        self._progress.update(self._task, completed=done, description=text)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
