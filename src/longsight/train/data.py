"""What each step of each stage reads: a pure function of the configuration, the seed and the step.

The rows of a step are numbered over all processes, and each is made from its number alone. So a run resumes by knowing
its step, and any number of processes reads the same rows. Nothing depends on where one stage ends and the next begins
if they read the same sources at the same length.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from longsight.model.errors import ConfigError
from longsight.model.tokenizer import Tokenizer
from longsight.ops.training import Documents
from longsight.train import tasks
from longsight.train.batch import TrainBatch
from longsight.train.config import SourceConfig, StageConfig, TrainConfig
from longsight.train.draws import generator
from longsight.train.errors import DataError
from longsight.train.packing import Packing, Sequences, pack
from longsight.train.positions import skipped
from longsight.train.tokenizer import file_hash, of_words
from longsight.train.tokens import HEADER, TokenFile

Array = np.ndarray[Any, np.dtype[np.int64]]


class Source(Protocol):
    def row(self, seed: int, number: int, length: int) -> Sequences:
        """Row `number` of an endless sequence of rows of `length` tokens."""


class TaskSource:
    """Rows that a generated task makes up. each: tokens of one sample; a row holds length // each, one at least."""

    def __init__(self, name: str, task: tasks.Task, each: int = 0) -> None:
        self.name, self.task, self.each = name, task, each

    def row(self, seed: int, number: int, length: int) -> Sequences:
        rng = generator(seed, f"task {self.name}", number, length)
        size = min(self.each or length, length)
        samples = [self.task.sample(rng, size) for _ in range(length // size)]
        return Sequences(
            np.concatenate([sample.tokens for sample in samples]),
            np.concatenate([sample.targets for sample in samples]),
            tuple(tokens for sample in samples for tokens in sample.lengths),
        )


class TokenSource:
    """Rows packed from a token file: every row once an epoch, in an order of the epoch's own."""

    def __init__(self, name: str, tokens: TokenFile, part: tuple[float, float]) -> None:
        self.name, self.tokens = name, tokens
        documents = np.arange(len(tokens), dtype=np.int64)
        # A fixed shuffle, whatever the seed: what is held out of one run is held out of all.
        place = np.empty(len(tokens))
        place[generator(0, "part").permutation(len(tokens))] = (np.arange(len(tokens)) + 0.5) / max(len(tokens), 1)
        self.documents = documents[(place >= part[0]) & (place < part[1])]
        self.lengths = tokens.lengths()[self.documents]
        if not self.lengths.sum():
            raise DataError(f"data {name!r}: {tokens.path} has no tokens in part {list(part)} of its documents")
        self._packings: dict[int, Packing] = {}
        self._order = lru_cache(maxsize=4)(self._shuffle)

    def packing(self, length: int) -> Packing:
        if length not in self._packings:
            self._packings[length] = pack(self.documents, self.lengths, length)
        return self._packings[length]

    def row(self, seed: int, number: int, length: int) -> Sequences:
        packing = self.packing(length)
        epoch, place = divmod(number, len(packing))
        return packing.read(self.tokens, int(self._order(seed, epoch, length)[place]))

    def _shuffle(self, seed: int, epoch: int, length: int) -> Array:
        return generator(seed, f"rows {self.name}", epoch, length).permutation(len(self.packing(length)))


@dataclass(frozen=True)
class Mix:
    """Which source each row comes from, by integers alone: any run of rows holds each source's share, to within as many
    rows as there are sources, and a row's number inside its source is known without counting.
    """

    weights: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, shares: Mapping[str, float]) -> Mix:
        return cls(tuple((name, max(round(share * 2**32), 1)) for name, share in shares.items()))

    def pick(self, row: int) -> tuple[str, int]:
        """The source of a row and how many rows before it came from the same source."""
        rest, index = sum(weight for _, weight in self.weights), row
        for name, weight in self.weights:
            before, after = index * weight // rest, (index + 1) * weight // rest
            if after > before:
                return name, before
            index, rest = index - before, rest - weight
        raise AssertionError("the last source takes what is left")

    def counts(self, rows: int) -> dict[str, int]:
        """Rows of each source among the first `rows`."""
        rest, index, counts = sum(weight for _, weight in self.weights), rows, {}
        for name, weight in self.weights:
            counts[name] = index * weight // rest
            index, rest = index - counts[name], rest - weight
        return counts


@dataclass(frozen=True)
class StageData:
    """An opened stage. first_row: rows of earlier stages, which number those of this one.

    mixed: rows of earlier stages that the same mix went on through. before: rows that each source gave until then, at
    this length. purpose: "train" or "validation", whose random draws have nothing in common.
    """

    length: int
    batch: int
    micro: int
    skip: int
    mix: Mix
    sources: Mapping[str, Source]
    first_row: int = 0
    mixed: int = 0
    before: Mapping[str, int] | None = None
    purpose: str = "train"

    def sequences(self, seed: int, row: int) -> tuple[Sequences, Array]:
        """Row `row` of the stage, counted from 0 over all its steps, and its RoPE positions."""
        name, number = self.mix.pick(self.mixed + row)
        number += (self.before or {}).get(name, 0)
        read = self.sources[name].row(seed, number, self.length)
        rng = generator(seed, f"positions {self.purpose}", self.first_row + row)
        places = [skipped(rng, length, self.skip) for length in read.lengths]
        return read, np.concatenate(places) if places else np.empty(0, np.int64)


def batches(stage: StageData, seed: int, step: int, rank: int = 0, world: int = 1) -> list[TrainBatch]:
    """The micro-batches of one process in one step.

    Together the `world` processes read rows step * batch .. step * batch + batch - 1, whatever their number; each has
    as many micro-batches as every other. Raises ConfigError where there are more processes than rows.
    """
    if stage.batch < world:
        raise ConfigError(f"batch is {stage.batch}; {world} processes need at least {world} rows")
    first = step * stage.batch
    begin, end = first + rank * stage.batch // world, first + (rank + 1) * stage.batch // world
    # No process may be left without a row in the last micro-batch, or it would wait for the others for ever.
    most = math.ceil(stage.batch / world)
    count = min(math.ceil(most / stage.micro), stage.batch // world)
    cuts = [begin + (end - begin) * i // count for i in range(count + 1)]
    return [join(stage.sequences(seed, row) for row in range(a, b)) for a, b in itertools.pairwise(cuts)]


def join(rows: Iterable[tuple[Sequences, Array]]) -> TrainBatch:
    """Rows and their positions as one batch."""
    parts = list(rows)
    return TrainBatch(
        tokens=torch.from_numpy(np.concatenate([row.tokens for row, _ in parts])),
        targets=torch.from_numpy(np.concatenate([row.targets for row, _ in parts])),
        rope_positions=torch.from_numpy(np.concatenate([positions for _, positions in parts])),
        documents=Documents.of_lengths([length for row, _ in parts for length in row.lengths]),
    )


class Data:
    """All data of a run, opened and checked. Raises ConfigError and DataError."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self._check_files()
        path = config.tokenizer.path
        self.tokenizer = Tokenizer.from_file(path) if path else None
        hashed = file_hash(path) if path else None
        self.sources: dict[str, Source] = {}
        # Token files first: tasks may write around their text.
        for source in sorted(config.data, key=lambda source: source.task is not None):
            self.sources[source.name] = self._open(source, hashed)
        self._check_tokenizer()

    def _check_files(self) -> None:
        """Raise DataError for the first file or directory that isn't there, with the command that makes it."""
        for source in self.config.data:
            if source.tokens is not None and not (source.tokens / HEADER).is_file():
                where = os.path.normpath(source.tokens)
                command = source.made_by or f"longsight tokenize PATH... --train-vocab N --out {where}"
                raise DataError(f"there is no token file {where}, which data {source.name!r} reads; make it: {command}")
        chosen = self.config.tokenizer
        for key, path in (("path", chosen.path), ("chat_template", chosen.chat_template)):
            if path is not None and not path.is_file():
                hint = "; `longsight tokenize` writes one beside the tokens" if key == "path" else ""
                raise DataError(f"cannot read {os.path.normpath(path)}, the {key} of [tokenizer]: no such file{hint}")

    def _open(self, source: SourceConfig, tokenizer_hash: str | None) -> Source:
        vocab_size = self.config.model.config.vocab_size
        where = f"data {source.name!r}: "
        if source.task is not None:
            texts = {name: opened.tokens for name, opened in self.sources.items() if isinstance(opened, TokenSource)}
            context = tasks.Context(vocab_size, self.tokenizer, texts)
            return TaskSource(source.name, tasks.build(source.task, source.options, context, where), source.each)
        assert source.tokens is not None
        tokens = TokenFile(source.tokens)
        if tokens.header.vocab_size > vocab_size:
            raise ConfigError(
                f"{where}{source.tokens} has a vocabulary of {tokens.header.vocab_size}; the model's vocab_size is "
                f"{vocab_size}"
            )
        if tokenizer_hash is not None and tokens.header.tokenizer != tokenizer_hash:
            raise DataError(f"{where}{source.tokens} was written with another tokenizer than [tokenizer] path")
        return TokenSource(source.name, tokens, source.part)

    @cached_property
    def stages(self) -> tuple[StageData, ...]:
        """In the order of the configuration."""
        opened: list[StageData] = []
        given: dict[tuple[str, int], int] = {}  # (source, length) -> rows that stages before gave
        first_row, previous = 0, None
        for stage in self.config.stages:
            mix, rows = Mix.of(stage.sources), stage.steps * stage.batch
            if previous is not None and (previous.mix, previous.length) == (mix, stage.length):
                mixed, before = first_row - (previous.first_row - previous.mixed), dict(previous.before or {})
            else:
                mixed, before = 0, {name: given.get((name, stage.length), 0) for name in stage.sources}
            previous = self._stage(stage, mix, first_row, mixed, before)
            opened.append(previous)
            for name, count in mix.counts(mixed + rows).items():
                given[name, stage.length] = before[name] + count
            first_row += rows
        return tuple(opened)

    def _stage(self, stage: StageConfig, mix: Mix, first_row: int, mixed: int, before: Mapping[str, int]) -> StageData:
        return StageData(
            stage.length, stage.batch, stage.micro, stage.skip, mix, self.sources, first_row, mixed, before
        )

    @cached_property
    def validation(self) -> StageData | None:
        """One step of it is the whole validation set; a generated task's rows are never those of training."""
        v = self.config.validation
        if v is None:
            return None
        sources = {
            name: TaskSource(f"{name}, validation", source.task, source.each)
            if isinstance(source, TaskSource)
            else source
            for name, source in self.sources.items()
        }
        return StageData(v.length, v.rows, 1, 0, Mix.of(v.sources), sources, purpose="validation")

    def write_tokenizer(self, path: Path) -> bool:
        """The run's tokenizer.json, copied or made of a task's token names; False if there is none."""
        chosen = self.config.tokenizer
        if chosen.path is not None:
            path.write_bytes(chosen.path.read_bytes())
        elif words := self._words():
            path.write_text(of_words(words, bos=words[0], unknown=words[1]).to_str(), encoding="utf-8")
        return chosen.path is not None or chosen.source is not None

    def _words(self) -> Sequence[str]:
        """The token names of the source that [tokenizer] names; empty if it names none, or one without."""
        source = self.sources.get(self.config.tokenizer.source or "")
        return source.task.words() if isinstance(source, TaskSource) else ()

    def _check_tokenizer(self) -> None:
        """Raise for what would be missed at the end of the run only, when it is written."""
        chosen = self.config.tokenizer
        if chosen.source is not None and not self._words():
            raise ConfigError(f"tokenizer.source is {chosen.source!r}; expected a source whose task names its tokens")
