"""`key=value` from the command line, laid over a training file before it is read."""

from __future__ import annotations

import reprlib
import tomllib
from collections.abc import Sequence
from typing import Any

from longsight.model.errors import ConfigError

FORM = "section.key=value, as run.seed=1 or stage.NAME.steps=100"


def apply(data: dict[str, Any], assignments: Sequence[str]) -> None:
    """Change parsed TOML in place. Entries of [[stage]] and [[data]] go by their name or by their number from 1; values
    are written as in TOML, and what is no TOML value is a text. Raises ConfigError naming the assignment."""
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        *path, last = (part.strip() for part in key.split("."))
        if not equals or not path or not all((*path, last)):
            raise ConfigError(f"--set {assignment!r}: expected {FORM}")
        at: Any = data
        for depth, part in enumerate(path):
            at = _entry(at, part, assignment) if isinstance(at, list) else at.setdefault(part, {})
            if not isinstance(at, dict | list):
                raise ConfigError(f"--set {assignment!r}: {'.'.join(path[: depth + 1])} is {at!r}, not a section")
        if isinstance(at, list):
            raise ConfigError(f"--set {assignment!r}: {'.'.join(path)} is a list; say which entry, by name or number")
        at[last] = _value(text.strip())


def _entry(entries: list[Any], part: str, assignment: str) -> Any:
    for number, entry in enumerate(entries, 1):
        if part == str(number) or (isinstance(entry, dict) and entry.get("name") == part):
            return entry
    names = [entry.get("name", "?") if isinstance(entry, dict) else "?" for entry in entries]
    raise ConfigError(f"--set {assignment!r}: no entry {part!r}; there are {reprlib.repr(names)}, or 1 to {len(names)}")


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
