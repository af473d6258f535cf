"""How a request wants its tokens chosen, and when its answer ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from longsight.engine.errors import InvalidRequestError

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
MAX_LOGPROBS = 20
MAX_ANSWERS = 128
MIN_REPETITION = 64
DEFAULT_MAX_TOKENS = 16  # of a text completion, as in the OpenAI protocol
GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "lark"]


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like: it cannot be anything else. For SamplingParams(grammar=...).

        Grammar("json_schema", json.dumps({"type": "object", "properties": {"code": {"type": "string"}}}))
        Grammar("json_object")                                any JSON object
        Grammar("regex", r"[0-9]{4}-[A-Z]{3}")                a regular expression, of the whole answer
        Grammar("choice", ("yes", "no"))                      one of these
        Grammar("lark", 'start: "a" NUMBER\\nNUMBER: /[0-9]+/')   a Lark grammar

    value: the schema as JSON text, the expression, the choices, the grammar; empty for json_object. Raises
    InvalidRequestError for a kind that there is not; what is wrong with a value is said when a request uses it.
    """

    kind: GrammarKind
    value: str | tuple[str, ...] = ""

    def __post_init__(self) -> None:
        kinds = get_args(GrammarKind)
        _check(self.kind in kinds, "grammar", repr(self.kind), f"one of {', '.join(kinds)}")


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to end. Raises InvalidRequestError with the field's name and accepted range.

    temperature 0 is greedy. top_k keeps the k likeliest tokens (0 = all), min_p those at least min_p times as likely as
    the likeliest, then top_p the smallest set of them whose probability reaches it (always at least one).
    repetition_penalty divides positive and multiplies negative logits of every token in prompt or output;
    presence_penalty and frequency_penalty are taken off the logits of tokens in the output, once or per occurrence.
    logit_bias adds to logits, token id by token id. suppress_tokens are never chosen, whatever their bias, except where
    a grammar allows nothing else. The end-of-sequence tokens and stop_token_ids end the answer, but
    not before min_tokens. logprobs: None, or how many of the likeliest tokens to report beside the chosen one's.
    The same seed gives the same answer, whatever else the engine runs; None draws a fresh one. n: answers to one
    prompt, which is read once; answer i takes seed + i. max_tokens None: 16, and in a chat the default of the model.
    max_repetition: an answer that ends in the same piece of up to 32 tokens over and over, for so many tokens, is cut
    as one that has reached max_tokens is; None lets it go on.
    """

    n: int = 1
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    suppress_tokens: tuple[int, ...] = ()
    max_repetition: int | None = None
    logprobs: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        _check(1 <= self.n <= MAX_ANSWERS, "n", self.n, f"an integer from 1 to {MAX_ANSWERS}")
        most = self.max_tokens
        _check(most is None or most >= 1, "max_tokens", most, "an integer of at least 1")
        _check(0 <= self.temperature <= 2, "temperature", self.temperature, "a number from 0 to 2")
        _check(0 <= self.top_p <= 1, "top_p", self.top_p, "a number from 0 to 1")
        _check(self.top_k >= 0, "top_k", self.top_k, "an integer of at least 0 (0 = no limit)")
        _check(0 <= self.min_p <= 1, "min_p", self.min_p, "a number from 0 to 1")
        good = 0 <= self.min_tokens <= (DEFAULT_MAX_TOKENS if most is None else most)
        _check(good, "min_tokens", self.min_tokens, "from 0 to max_tokens")
        good = self.max_repetition is None or self.max_repetition >= MIN_REPETITION
        _check(good, "max_repetition", self.max_repetition, f"an integer of at least {MIN_REPETITION}")
        # Beyond these bounds logits overflow, and what is drawn from them means nothing.
        good = 0.01 <= self.repetition_penalty <= 100
        _check(good, "repetition_penalty", self.repetition_penalty, "a number from 0.01 to 100")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(-2 <= value <= 2, name, value, "a number from -2 to 2")
        for token, bias in (self.logit_bias or {}).items():
            _check(-100 <= bias <= 100, "logit_bias", f"{bias} for token {token}", "from -100 to 100 for each token")
        if self.logprobs is not None:
            _check(
                0 <= self.logprobs <= MAX_LOGPROBS, "logprobs", self.logprobs, f"an integer from 0 to {MAX_LOGPROBS}"
            )
        _check(len(self.stop) <= MAX_STOP_STRINGS, "stop", f"{len(self.stop)} strings", f"up to {MAX_STOP_STRINGS}")
        for stop in self.stop:
            _check(
                0 < len(stop) <= MAX_STOP_CHARS, "stop", f"{len(stop)} characters long", f"1 to {MAX_STOP_CHARS} long"
            )

    @property
    def adjusts_logits(self) -> bool:
        """Whether logits change before a token is chosen, so that the likeliest one may not be the largest logit."""
        return bool(
            self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
            or self.min_tokens
            or self.grammar
        )


def _check(good: bool, param: str, value: object, accepted: str) -> None:
    # A NaN fails every comparison, so it lands here too.
    if not good:
        raise InvalidRequestError(f"{param} is {value}; it must be {accepted}", param)
