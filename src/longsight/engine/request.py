"""One request's state. Plain Python over integers: no tensors."""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, field, replace
from typing import Any, Literal, NamedTuple

from longsight.engine.draft import Drafter
from longsight.engine.errors import InvalidRequestError
from longsight.engine.page_chain import PageChain
from longsight.engine.params import DEFAULT_MAX_TOKENS, SamplingParams
from longsight.engine.sampler import Matcher, SamplingState, TokenLogprob
from longsight.engine.text import TextStream

FinishReason = Literal["stop", "length", "cancelled", "error"]
_ids = itertools.count()


@dataclass(frozen=True)
class Selection:
    """The blocks one sparse layer chose for one generated token. blocks[group] ascends; padding is left out."""

    token_index: int
    layer: int
    blocks: tuple[tuple[int, ...], ...]


@dataclass(eq=False)
class Request:
    """A prompt on its way to an answer. `id` is unique in the process and says nothing about the caller.

    priority: lower runs first; equal ones in order of arrival. deadline: when to give up, in time.monotonic() seconds.
    cache_salt: requests share pages only with those of the same salt. follows: a request with the same prompt, whose
    reading this one waits for, so that a prompt with several answers is read once.

    `computed` tokens of prompt + output have their keys and values in `pages`; the next step runs the ones after them.
    `slot` is the request's row in the engine's block table while it runs, else -1. cached_tokens: prompt tokens that
    came from the prefix cache when the request was first admitted. arrived, admitted, first_token, ended: when it was
    first so, in time.monotonic() seconds; None before.
    """

    token_ids: InitVar[Iterable[int]]
    params: SamplingParams = field(default_factory=SamplingParams)
    record_selection: bool = False
    priority: int = 0
    deadline: float | None = None
    cache_salt: bytes = b""
    follows: Request | None = field(default=None, repr=False)

    prompt: array[int] = field(init=False, repr=False)
    id: int = field(default_factory=lambda: next(_ids), init=False)
    output: list[int] = field(default_factory=list, init=False, repr=False)
    logprobs: list[TokenLogprob] = field(default_factory=list, init=False, repr=False)
    selections: list[Selection] = field(default_factory=list, init=False, repr=False)
    pages: list[int] = field(default_factory=list, init=False, repr=False)
    slot: int = field(default=-1, init=False)
    computed: int = field(default=0, init=False)
    cached_tokens: int = field(default=0, init=False)
    preemptions: int = field(default=0, init=False)
    arrived: float | None = field(default=None, init=False)
    admitted: float | None = field(default=None, init=False)
    first_token: float | None = field(default=None, init=False)
    ended: float | None = field(default=None, init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    text: TextStream | None = field(default=None, init=False, repr=False)
    stop_ids: frozenset[int] = field(default=frozenset(), init=False, repr=False)  # tokens that end the answer
    # Made when the engine takes the request; they outlive preemption, so that nothing generated is lost by it.
    sampling: SamplingState | None = field(default=None, init=False, repr=False)
    matcher: Matcher | None = field(default=None, init=False, repr=False)
    chain: PageChain | None = field(default=None, init=False, repr=False)
    drafter: Drafter | None = field(default=None, init=False, repr=False)

    def __post_init__(self, token_ids: Iterable[int]) -> None:
        # A million Python ints would be 36 MB; the array is 4, and slicing it per chunk copies only the chunk.
        self.prompt = to_token_array(token_ids)
        if not len(self.prompt):
            raise InvalidRequestError("the prompt is empty; it must hold at least one token", "prompt")

    @property
    def length(self) -> int:
        """Tokens known so far: prompt and output."""
        return len(self.prompt) + len(self.output)

    @property
    def max_tokens(self) -> int:
        """The most tokens of the answer."""
        return DEFAULT_MAX_TOKENS if self.params.max_tokens is None else self.params.max_tokens

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def rank(self) -> tuple[int, int]:
        """Sorts requests by who goes first."""
        return self.priority, self.id

    def tokens(self, start: int, stop: int) -> array[int]:
        """Tokens [start, stop) of prompt + output, int32."""
        n = len(self.prompt)
        if stop <= n:
            return self.prompt[start:stop]
        if start >= n:
            return array("i", self.output[start - n : stop - n])
        return self.prompt[start:n] + array("i", self.output[: stop - n])


def to_token_array(tokens: Iterable[int]) -> array[int]:
    """int32 array of token ids. Raises InvalidRequestError for anything that is not an integer of that size."""
    if isinstance(tokens, array) and tokens.typecode == "i":
        return tokens
    try:
        return array("i", tokens)
    except (TypeError, OverflowError) as error:
        raise InvalidRequestError(f"token ids must be integers from 0 to {2**31 - 1}: {error}", "prompt") from error


def requests_for(token_ids: Iterable[int], params: SamplingParams, **options: Any) -> list[Request]:
    """One request per answer that `params` asks for; all share the first one's reading of the prompt."""
    leader = Request(token_ids, params, **options)
    others = [
        Request(leader.prompt, replace(params, seed=None if params.seed is None else params.seed + i), **options)
        for i in range(1, params.n)
    ]
    for other in others:
        other.follows = leader
    return [leader, *others]


class Update(NamedTuple):
    """What a step did for one request.

    text: the part of the answer that has become final (may be empty while a character or a stop string is incomplete).
    tokens: the tokens generated, several where drafts came true; none for a chunk of the prompt. logprobs: theirs, if
    asked for. processed: prompt tokens read so far.
    """

    request: Request
    text: str = ""
    tokens: Sequence[int] = ()
    processed: int = 0
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    logprobs: Sequence[TokenLogprob] = ()


@dataclass(frozen=True, slots=True)
class StepStats:
    """One step, for progress displays and measurements. context: the longest sequence after the step, in tokens.

    decode_tokens: tokens generated by running streams. drafted, accepted: guessed tokens verified, and found true.
    kernel_seconds: the part of `seconds` spent in the model's forward pass.
    """

    prompt_tokens: int
    decode_tokens: int
    context: int
    seconds: float
    running: int
    waiting: int
    drafted: int = 0
    accepted: int = 0
    kernel_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return (self.prompt_tokens + self.decode_tokens) / self.seconds if self.seconds > 0 else math.inf
