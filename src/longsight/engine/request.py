"""One request's parameters and state. Plain Python over integers: no tensors."""

from __future__ import annotations

import itertools
import math
import random
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Literal

from longsight.engine.errors import InvalidRequestError
from longsight.engine.text import TextStream

FinishReason = Literal["stop", "length", "cancelled", "error"]
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
_ids = itertools.count()


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to end. Raises InvalidRequestError with the field's name and accepted range.

    temperature 0 is greedy. top_k keeps the k likeliest tokens (0 = all), then top_p the smallest set of them whose
    probability reaches it (always at least one). The same seed gives the same answer, whatever else the engine runs;
    None draws a fresh one.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check(self.max_tokens >= 1, "max_tokens", self.max_tokens, "an integer of at least 1")
        _check(0 <= self.temperature <= 2, "temperature", self.temperature, "a number from 0 to 2")
        _check(0 <= self.top_p <= 1, "top_p", self.top_p, "a number from 0 to 1")
        _check(self.top_k >= 0, "top_k", self.top_k, "an integer of at least 0 (0 = no limit)")
        _check(len(self.stop) <= MAX_STOP_STRINGS, "stop", f"{len(self.stop)} strings", f"up to {MAX_STOP_STRINGS}")
        for stop in self.stop:
            _check(
                0 < len(stop) <= MAX_STOP_CHARS, "stop", f"{len(stop)} characters long", f"1 to {MAX_STOP_CHARS} long"
            )


def _check(good: bool, param: str, value: object, accepted: str) -> None:
    # A NaN fails every comparison, so it lands here too.
    if not good:
        raise InvalidRequestError(f"{param} is {value}; it must be {accepted}", param)


@dataclass(frozen=True)
class Selection:
    """The blocks one sparse layer chose for one generated token. blocks[group] ascends; padding is left out."""

    token_index: int
    layer: int
    blocks: tuple[tuple[int, ...], ...]


@dataclass(eq=False)
class Request:
    """A prompt on its way to an answer. `id` is unique in the process and says nothing about the caller.

    `computed` tokens of prompt + output have their keys and values in `pages`; the next step runs the ones after them.
    `slot` is the request's row in the engine's block table while it runs, else -1.
    """

    token_ids: InitVar[Iterable[int]]
    params: SamplingParams = field(default_factory=SamplingParams)
    record_selection: bool = False

    prompt: array[int] = field(init=False, repr=False)
    id: int = field(default_factory=lambda: next(_ids), init=False)
    output: list[int] = field(default_factory=list, init=False, repr=False)
    selections: list[Selection] = field(default_factory=list, init=False, repr=False)
    pages: list[int] = field(default_factory=list, init=False, repr=False)
    slot: int = field(default=-1, init=False)
    computed: int = field(default=0, init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    text: TextStream | None = field(default=None, init=False, repr=False)
    rng: random.Random = field(init=False, repr=False)

    def __post_init__(self, token_ids: Iterable[int]) -> None:
        # A million Python ints would be 36 MB; the array is 4, and slicing it per chunk copies only the chunk.
        self.prompt = to_token_array(token_ids)
        if not len(self.prompt):
            raise InvalidRequestError("the prompt is empty; it must hold at least one token", "prompt")
        # Python promises that a seeded Random.random() repeats across versions and machines.
        self.rng = random.Random(self.params.seed)

    @property
    def length(self) -> int:
        """Tokens known so far: prompt and output."""
        return len(self.prompt) + len(self.output)

    @property
    def max_length(self) -> int:
        """The most tokens this request can come to; its pages are reserved for as many."""
        return len(self.prompt) + self.params.max_tokens

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def tokens(self, start: int, stop: int) -> Sequence[int]:
        """Tokens [start, stop) of the prompt, or of the output counted on from it; never some of both."""
        prompt = len(self.prompt)
        return self.prompt[start:stop] if start < prompt else self.output[start - prompt : stop - prompt]


def to_token_array(tokens: Iterable[int]) -> array[int]:
    """int32 array of token ids. Raises InvalidRequestError for anything that is not an integer of that size."""
    if isinstance(tokens, array) and tokens.typecode == "i":
        return tokens
    try:
        return array("i", tokens)
    except (TypeError, OverflowError) as error:
        raise InvalidRequestError(f"token ids must be integers from 0 to {2**31 - 1}: {error}", "prompt") from error


@dataclass(frozen=True, slots=True)
class Update:
    """What a step did for one request.

    text: the part of the answer that has become final (may be empty while a character or a stop string is incomplete).
    token: the generated token, or None for a chunk of the prompt. processed: prompt tokens read so far.
    """

    request: Request
    text: str = ""
    token: int | None = None
    processed: int = 0
    finish_reason: FinishReason | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class StepStats:
    """One step, for progress displays and measurements. context: the longest sequence after the step, in tokens."""

    prompt_tokens: int
    decode_tokens: int
    context: int
    seconds: float
    running: int
    waiting: int

    @property
    def tokens_per_second(self) -> float:
        return (self.prompt_tokens + self.decode_tokens) / self.seconds if self.seconds > 0 else math.inf
