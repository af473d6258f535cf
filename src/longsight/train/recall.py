"""Multi-query recall: key-value pairs among fillers; where a key comes again, its value is the answer.

After a start token, a row is made of cells of two tokens, filler-filler or key-value. A random shift of one token puts
pairs on both parities, so that some straddle a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from longsight.model.errors import ConfigError
from longsight.train.batch import IGNORED
from longsight.train.packing import Sequences
from longsight.train.table import Table
from longsight.train.tasks import Context, register

Array = np.ndarray[Any, np.dtype[np.int64]]
BOS = 0
MOST = 1 << 20


@dataclass(frozen=True)
class Vocabulary:
    """Token 0 starts a row; then come fillers, values and keys."""

    fillers: int = 64
    values: int = 64
    keys: int = 1024

    @property
    def first_value(self) -> int:
        return 1 + self.fillers

    @property
    def first_key(self) -> int:
        return self.first_value + self.values

    @property
    def size(self) -> int:
        """The smallest vocabulary that has them all."""
        return self.first_key + self.keys

    @property
    def filler_ids(self) -> range:
        return range(1, self.first_value)

    @property
    def value_ids(self) -> range:
        return range(self.first_value, self.first_key)

    @property
    def key_ids(self) -> range:
        return range(self.first_key, self.size)

    def words(self) -> Sequence[str]:
        names = (("f", self.fillers), ("v", self.values), ("k", self.keys))
        return ["<bos>", *(f"{letter}{i}" for letter, count in names for i in range(count))]

    @classmethod
    def read(cls, table: Table, context: Context) -> Vocabulary:
        vocabulary = cls(
            table.integer("vocab_fillers", cls.fillers, least=1, most=MOST),
            table.integer("vocab_values", cls.values, least=1, most=MOST),
            table.integer("vocab_keys", cls.keys, least=1, most=MOST),
        )
        if vocabulary.size > context.vocab_size:
            raise ConfigError(
                f"{table.where}task needs {vocabulary.size} tokens; the model's vocab_size is {context.vocab_size}"
            )
        return vocabulary


@dataclass(frozen=True)
class Recall:
    """Training rows: n keys (drawn from `keys`, both ends included) without replacement, one random value each; a share
    of the cells (drawn from `density`, evenly or on a log scale) are pairs of a random one of them. Every repeated
    key's value is an answer.
    """

    vocabulary: Vocabulary
    keys: tuple[int, int]
    density: tuple[float, float]
    density_scale: Literal["even", "log"]

    def words(self) -> Sequence[str]:
        return self.vocabulary.words()

    def sample(self, rng: np.random.Generator, length: int) -> Sequences:
        v = self.vocabulary
        tokens, first, cells = _fillers(rng, length, v)
        n = int(rng.integers(self.keys[0], self.keys[1], endpoint=True))
        low, high = self.density
        share = (
            np.exp(rng.uniform(np.log(low), np.log(high))) if self.density_scale == "log" else rng.uniform(low, high)
        )
        keys = rng.choice(v.keys, n, replace=False)
        values = rng.integers(0, v.values, n)
        # Random places, in the order of the text.
        places = np.sort(rng.choice(cells, round(float(share) * cells), replace=False))
        chosen = rng.integers(0, n, len(places))
        at = first + 2 * places
        tokens[at], tokens[at + 1] = v.first_key + keys[chosen], v.first_value + values[chosen]
        again = np.ones(len(places), bool)
        again[np.unique(chosen, return_index=True)[1]] = False
        return _asking(tokens, at[again])


@dataclass(frozen=True)
class Needles:
    """Test rows: n distinct keys, each once among fillers (one for every `spread` tokens), then `queries` cells that
    ask for different ones of them. So the longer the row, the more keys distract.
    """

    vocabulary: Vocabulary
    queries: int
    spread: int

    def words(self) -> Sequence[str]:
        return self.vocabulary.words()

    def sample(self, rng: np.random.Generator, length: int) -> Sequences:
        v = self.vocabulary
        tokens, first, cells = _fillers(rng, length, v)
        # Short rows ask for fewer, so that there is a cell for each key and each question.
        queries = min(self.queries, cells // 2)
        n = min(max(length // self.spread, queries), v.keys, cells - queries)
        keys, values = rng.choice(v.keys, n, replace=False), rng.integers(0, v.values, n)
        places = rng.choice(cells - queries, n, replace=False)
        asked = rng.choice(n, queries, replace=False)
        chosen = np.concatenate([np.arange(n), asked])
        at = first + 2 * np.concatenate([places, np.arange(cells - queries, cells)])
        tokens[at], tokens[at + 1] = v.first_key + keys[chosen], v.first_value + values[chosen]
        return _asking(tokens, at[n:])


def _fillers(rng: np.random.Generator, length: int, v: Vocabulary) -> tuple[Array, int, int]:
    """A row of fillers after its start token, the place of the first cell and the number of cells."""
    tokens = rng.integers(1, v.first_value, length)
    tokens[0] = BOS
    first = 1 + int(rng.integers(0, 2))
    return tokens, first, max(length - first, 0) // 2


def _asking(tokens: Array, at: Array) -> Sequences:
    """The row as one document whose answers follow the tokens `at`."""
    targets = np.full(len(tokens), IGNORED, np.int64)
    targets[at] = tokens[at + 1]
    return Sequences(tokens, targets, (len(tokens),))


@register("recall")
def _recall(table: Table, context: Context) -> Recall:
    vocabulary = Vocabulary.read(table, context)
    return Recall(
        vocabulary,
        table.integers("keys", (2, 12), least=1, most=vocabulary.keys),
        table.numbers("density", (0.3, 1.0), least=0.001, most=1.0),
        cast(Literal["even", "log"], table.choice("density_scale", ("even", "log"), "even")),
    )


@register("recall-needles")
def _needles(table: Table, context: Context) -> Needles:
    vocabulary = Vocabulary.read(table, context)
    return Needles(
        vocabulary,
        table.integer("queries", 8, least=1, most=vocabulary.keys),
        table.integer("spread", 32, least=4, most=MOST),
    )
