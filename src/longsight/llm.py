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
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from longsight.engine import (
    Engine,
    EngineDriver,
    InvalidRequestError,
    Request,
    SamplingDefaults,
    SamplingParams,
    StepStats,
    TokenLogprob,
    Update,
)
from longsight.engine.grammar import GrammarCompiler
from longsight.engine.request import FinishReason, requests_for
from longsight.model import load_model
from longsight.model.built_in import model_dir
from longsight.model.fingerprint import fingerprint
from longsight.model.tokenizer import FILE, Tokenizer

if TYPE_CHECKING:
    from longsight.chat.messages import Thinking
    from longsight.chat.prompt import ChatFormat

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]
Params = SamplingParams | Sequence[SamplingParams] | None


@dataclass
class CompletionOutput:
    """One answer. finish_reason: stop, length or cancelled. logprobs: one per token, if asked for."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None


@dataclass
class RequestOutput:
    """A prompt and its answers. num_cached_tokens: prompt tokens that came from the prefix cache."""

    prompt: str | None
    prompt_token_ids: Sequence[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0

    @property
    def finished(self) -> bool:
        return all(output.finish_reason is not None for output in self.outputs)


@dataclass(frozen=True, slots=True)
class StreamOutput:
    """A piece of an answer: text that has become final, and the tokens generated since the last piece."""

    index: int
    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprob] = ()
    finish_reason: FinishReason | None = None


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
        plans = self._plan(_each(prompts), sampling_params)
        outputs, requests = [], list[Request]()
        where: dict[Request, CompletionOutput] = {}
        for prompt, group in plans:
            answers = [CompletionOutput(i) for i in range(len(group))]
            outputs.append(RequestOutput(prompt if isinstance(prompt, str) else None, group[0].prompt, answers))
            where.update(zip(group, answers, strict=True))
            requests += group
        updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
        self._driver.listen(requests, updates.put)
        try:
            with _Bar(len(requests), use_tqdm) as bar:
                unfinished = len(requests)
                while unfinished:
                    update = updates.get()
                    _take(where[update.request], update)
                    unfinished -= update.finish_reason is not None
                    bar.show(len(requests) - unfinished, update)
        finally:
            self._driver.cancel(requests)
        for output, (_, group) in zip(outputs, plans, strict=True):
            output.num_cached_tokens = group[0].cached_tokens
        return outputs

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: Params = None,
        *,
        thinking: Thinking = "adaptive",
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """`generate` for one conversation or many, through the checkpoint's chat template. thinking: see `render`."""
        conversations = [messages] if not messages or isinstance(messages[0], Mapping) else messages
        prompts = [self.render(c, thinking=thinking) for c in conversations]  # type: ignore[arg-type]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[StreamOutput]:
        """The answer piece by piece. Leaving the loop ends the request."""
        ((_, requests),) = self._plan([prompt], sampling_params)
        updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
        self._driver.listen(requests, updates.put)
        try:
            unfinished = len(requests)
            while unfinished:
                update = updates.get()
                unfinished -= update.finish_reason is not None
                if (piece := _piece(requests, update)) is not None:
                    yield piece
        finally:
            self._driver.cancel(requests)

    async def astream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> AsyncIterator[StreamOutput]:
        """`stream` for asyncio."""
        ((_, requests),) = self._plan([prompt], sampling_params)
        stream = self._driver.submit(requests)
        try:
            async for update in stream.updates():
                if update is not None and (piece := _piece(requests, update)) is not None:
                    yield piece
        finally:
            stream.close()

    async def agenerate(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> RequestOutput:
        """One prompt's answers, for asyncio; many at once through asyncio.gather are batched."""
        ((_, requests),) = self._plan([prompt], sampling_params)
        answers = [CompletionOutput(i) for i in range(len(requests))]
        stream = self._driver.submit(requests)
        try:
            async for update in stream.updates():
                if update is not None:
                    _take(answers[requests.index(update.request)], update)
        finally:
            stream.close()
        text = prompt if isinstance(prompt, str) else None
        return RequestOutput(text, requests[0].prompt, answers, requests[0].cached_tokens)

    def render(self, messages: Messages, *, thinking: Thinking = "adaptive") -> Sequence[int]:
        """The token ids of a conversation, by the checkpoint's template or, without one, in MiniMax-M3's format.

        thinking: disabled or enabled, or adaptive: the model decides, and writes the markup for it into its answer.
        Raises InvalidRequestError naming the message that is wrong.
        """
        from longsight.chat.errors import ChatError
        from longsight.chat.messages import Thinking
        from longsight.server import openai_messages  # this and what follows need the extra [server]
        from longsight.server.errors import ApiError

        if thinking not in (modes := get_args(Thinking)):
            raise InvalidRequestError(f"thinking is {thinking!r}; it must be one of {', '.join(modes)}", "thinking")
        try:
            return self._chat_format.prompt(openai_messages.messages(list(messages)), thinking=thinking).tokens
        except (ApiError, ChatError) as error:
            raise InvalidRequestError(str(error), "messages") from error

    @cached_property
    def _chat_format(self) -> ChatFormat:
        from longsight.chat.prompt import ChatFormat
        from longsight.chat.template import ChatTemplate  # needs the extra [server]

        return ChatFormat(self.tokenizer, ChatTemplate.from_checkpoint(self._path))

    def close(self) -> None:
        """End what runs and free the pages."""
        self._driver.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _plan(self, prompts: Sequence[Prompt], sampling_params: Params) -> list[tuple[Prompt, list[Request]]]:
        """Each prompt's requests, one per answer."""
        if sampling_params is None:
            sampling_params = self.get_default_sampling_params()
        each = [sampling_params] * len(prompts) if isinstance(sampling_params, SamplingParams) else sampling_params
        if len(each) != len(prompts):
            raise InvalidRequestError(
                f"{len(prompts)} prompts came with {len(each)} SamplingParams; give one for all, or one for each"
            )
        tokens = [self.tokenizer.encode(p) if isinstance(p, str) else p for p in prompts]
        return [(p, requests_for(t, params)) for p, t, params in zip(prompts, tokens, each, strict=True)]


def _each(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """A list of prompts from one (a text, or token ids) or many."""
    single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
    return [prompts] if single else prompts  # type: ignore[list-item, return-value]


def _take(answer: CompletionOutput, update: Update) -> None:
    if update.error is not None:
        raise update.error
    answer.text += update.text
    answer.token_ids += update.tokens
    if update.logprobs:
        answer.logprobs = [*(answer.logprobs or []), *update.logprobs]
    answer.finish_reason = update.finish_reason


def _piece(requests: Sequence[Request], update: Update) -> StreamOutput | None:
    if update.error is not None:
        raise update.error
    if not update.tokens and update.finish_reason is None:
        return None
    index = requests.index(update.request)
    return StreamOutput(index, update.text, update.tokens, update.logprobs, update.finish_reason)


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
