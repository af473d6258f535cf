"""Generated tasks: endless data whose loss is on answers only. Each registers itself by the name that configs use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from longsight.model.errors import ConfigError
from longsight.model.tokenizer import Tokenizer
from longsight.train.packing import Sequences
from longsight.train.script import Material, Text
from longsight.train.table import Table


class Task(Protocol):
    """What makes rows."""

    def sample(self, rng: np.random.Generator, length: int) -> Sequences:
        """One row of at most `length` tokens, made of `rng` alone."""

    def words(self) -> Sequence[str]:
        """The name of each token, the start of a text first; empty if the tokens are those of a tokenizer."""


@dataclass(frozen=True)
class Context:
    """What a task may need of the run."""

    vocab_size: int
    tokenizer: Tokenizer | None = None
    texts: Mapping[str, Text] = field(default_factory=dict)  # the token files among the sources, by name
    _materials: dict[str, Material] = field(default_factory=dict, compare=False, repr=False)

    def material(self, table: Table) -> Material:
        """What texts are made of: the token file that the option `text` names. Raises ConfigError."""
        name = table.choice("text", self.texts)
        if self.tokenizer is None:
            raise ConfigError(f"{table.where}task writes text; it needs [tokenizer] path")
        if name not in self._materials:
            self._materials[name] = Material(self.tokenizer, self.texts[name])
        return self._materials[name]


Factory = Callable[[Table, Context], Task]
TASKS: dict[str, Factory] = {}


def register(name: str) -> Callable[[Factory], Factory]:
    """Give a factory its name. It reads the options it knows; those it leaves unread are refused."""

    def add(factory: Factory) -> Factory:
        if name in TASKS:
            raise ValueError(f"a task {name!r} is registered already")
        TASKS[name] = factory
        return factory

    return add


def build(name: str, options: Mapping[str, Any], context: Context, where: str = "") -> Task:
    """A task by name. Raises ConfigError for an unknown name or option, or for values out of range."""
    from longsight.train import (  # noqa: F401  each registers itself
        copying,
        counting,
        lists,
        questions,
        recall,
        tool_calls,
        tracking,
    )

    if name not in TASKS:
        raise ConfigError(f"{where}task is {name!r}; expected one of {', '.join(sorted(TASKS))}")
    table = Table(options, where)
    task = TASKS[name](table, context)
    table.finish()
    return task
