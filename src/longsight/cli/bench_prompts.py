"""Prompts of a bench: random words from a seed, of an exact number of tokens where the server can count them."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from longsight.cli.bench_errors import BenchError

COMMON = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work number night point home water room mother area money story fact
month lot right study book eye job word business issue side kind head house service friend father power hour game line
end member law car city name team minute idea body back parent face level office door health person art war history
party result change morning reason research girl guy moment air teacher force education
"""
WORDS = COMMON.split()
TRIES = 12
FILLERS = (" a", ".", " I", "!")  # one token each in most vocabularies
Counter = Callable[[str], Awaitable[int]]


@dataclass
class PromptMaker:
    """count: the tokens of a request with this text, chat template included; None if nobody can tell.

    template_tokens, tokens_per_word: what is known of the server's tokenizer, learned as prompts are made.
    """

    seed: int
    count: Counter | None = None
    shared_prefix: int = 0
    template_tokens: float = 0.0
    tokens_per_word: float = 1.0

    async def make(self, length: int, name: str) -> str:
        """A prompt of `length` tokens; prompts of other names begin otherwise, after the shared prefix."""
        if length <= self.template_tokens:
            raise BenchError(
                f"--input-len is {length}; the chat template alone takes {self.template_tokens:.0f} tokens of that"
            )
        words = self._words(f"shared/{self.seed}", round(self.shared_prefix / self.tokens_per_word))
        own = random.Random(f"{self.seed}/{length}/{name}")
        aim = max(round((length - self.template_tokens) / self.tokens_per_word), 1)
        words = [*words[: aim - 1], *_more(own, max(aim - len(words), 1))]
        return await self._fit(words, own, length) if self.count is not None else " ".join(words)

    async def _fit(self, words: list[str], own: random.Random, length: int) -> str:
        """Add and remove words, then fill up. The nearest that fits, if none is exact."""
        assert self.count is not None
        best = ""
        for _ in range(TRIES):
            text = " ".join(words)
            counted = await self.count(text)
            if counted == length:
                return text
            self.tokens_per_word = max((counted - self.template_tokens) / len(words), 0.05)
            if counted < length:
                best = text
                if length - counted <= 2 * self.tokens_per_word + 2:
                    for filler in FILLERS:
                        filled = text + filler * (length - counted)
                        if await self.count(filled) == length:
                            return filled
            step = round((length - counted) / self.tokens_per_word)
            if step > 0:
                words += _more(own, step)
            else:
                words = words[: max(len(words) + min(step, -1), 1)]
        return best or " ".join(words)

    def _words(self, name: str, number: int) -> list[str]:
        return _more(random.Random(name), number)


def _more(source: random.Random, number: int) -> list[str]:
    return source.choices(WORDS, k=number)


def arrival_times(seed: int, rate: float, number: int) -> Sequence[float]:
    """Seconds after the start at which requests are due: a Poisson process of `rate` a second, the first at once."""
    source, at, times = random.Random(f"arrivals/{seed}/{rate}"), 0.0, []
    for _ in range(number):
        times.append(at)
        at += source.expovariate(rate)
    return times
