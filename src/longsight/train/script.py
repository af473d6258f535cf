"""Texts for generated tasks: a row written piece by piece, each to be learned or only read; words and filler to write
from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from longsight.model.errors import ConfigError
from longsight.model.tokenizer import Tokenizer
from longsight.train.batch import IGNORED
from longsight.train.packing import Sequences

Array = np.ndarray[Any, np.dtype[np.int64]]
_WORD = re.compile(r"(?<![^\W\d_])[A-Za-z][a-z]{2,11}(?![^\W_])")
WORDS_FROM = 1 << 21  # tokens of text that the words are taken from


class Text(Protocol):
    """A token file's documents, as `train.tokens.TokenFile` has them."""

    def __len__(self) -> int: ...
    def lengths(self) -> Array: ...
    def read(self, document: int, start: int, stop: int) -> Array: ...


@dataclass
class Script:
    """One row while it is written: ids, and for each whether a model should have foreseen it."""

    ids: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)

    def add(self, ids: Sequence[int], learn: bool = False) -> Script:
        self.ids.extend(ids)
        self.learned.extend([learn] * len(ids))
        return self

    def __len__(self) -> int:
        return len(self.ids)

    def row(self) -> Sequences:
        """As one document."""
        tokens = np.array(self.ids, np.int64)
        targets = np.full(len(tokens), IGNORED, np.int64)
        after = np.array(self.learned, bool)[1:]
        targets[:-1][after] = tokens[1:][after]
        return Sequences(tokens, targets, (len(tokens),))


class Material:
    """What generated texts are made of: words and stretches of real documents, and the tokenizer that writes them."""

    def __init__(self, tokenizer: Tokenizer, text: Text) -> None:
        self.tokenizer, self._text = tokenizer, text
        self._lengths = text.lengths()
        self._ends = np.cumsum(self._lengths)

    def encode(self, text: str) -> Sequence[int]:
        return self.tokenizer.encode_plain(text)

    def markup(self, text: str) -> Sequence[int]:
        """What a model writes: markers in it are tokens of their own."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def special(self, literal: str) -> Sequence[int]:
        """The one token that a marker is. Raises ConfigError where it is none."""
        ids = self.markup(literal)
        if len(ids) != 1:
            raise ConfigError(f"the tokenizer writes {literal!r} in {len(ids)} tokens; a chat needs it as one")
        return ids

    def filler(self, rng: np.random.Generator, length: int) -> list[int]:
        """`length` tokens of text from a random place on, through as many documents as it takes."""
        at = int(rng.integers(self._ends[-1]))
        document = int(np.searchsorted(self._ends, at, side="right"))
        start = at - (int(self._ends[document - 1]) if document else 0)
        ids: list[int] = []
        while len(ids) < length:
            end = int(self._lengths[document])
            ids += self._text.read(document, start, min(end, start + length - len(ids))).tolist()
            document, start = (document + 1) % len(self._text), 0
        return ids

    @cached_property
    def _vocabulary(self) -> tuple[list[str], list[str]]:
        """Words in small letters, and names: words that are never written so. In order of first use."""
        rng = np.random.default_rng(0)
        seen: dict[str, None] = {}
        some = min(WORDS_FROM, int(self._ends[-1])) // 64
        for _ in range(64):
            seen.update(dict.fromkeys(_WORD.findall(self.tokenizer.decode(self.filler(rng, some)))))
        words = [word for word in seen if word.islower()]
        small = set(words)
        names = [word for word in seen if word.lower() not in small]
        if min(len(words), len(names)) < 100:
            raise ConfigError(f"the text has {len(words)} different words and {len(names)} names; expected 100 of each")
        return words, names

    def word(self, rng: np.random.Generator) -> str:
        words = self._vocabulary[0]
        return words[int(rng.integers(len(words)))]

    def name(self, rng: np.random.Generator) -> str:
        names = self._vocabulary[1]
        return names[int(rng.integers(len(names)))]


def pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def chance(rng: np.random.Generator, *weighted: tuple[float, Callable[[], str]]) -> str:
    """One of several ways to make a text, by weight."""
    total = sum(weight for weight, _ in weighted)
    drawn = rng.random() * total
    for weight, make in weighted:
        drawn -= weight
        if drawn < 0:
            return make()
    return weighted[-1][1]()
