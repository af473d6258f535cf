"""The benches, in the order they run: rulers first, then from one operator to whole models."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from bench.harness import BenchError, Session

NAMES = (
    "ceilings",
    "scan",
    "screen",
    "main_branch",
    "dense_prefill",
    "sparse_prefill",
    "training",
    "decode",
    "transformers_module",
    "transformers_integration",
    "llama_cpp",
    "llama_cpp_32k",
    "million",
    "engine",
    "fairness",
    "small_memory",
    "serving",
    "load",
    "http_load",
    "parser",
)


class Bench(Protocol):
    NAME: str
    TITLE: str

    def run(self, session: Session) -> None: ...


def load(name: str) -> Bench:
    """The bench called `name`. Imported only when it runs: each has its own heavy peers."""
    if name not in NAMES:
        raise BenchError(f"no bench is called {name!r}; there are {', '.join(NAMES)}")
    return cast(Bench, importlib.import_module(f"bench.{name}"))
