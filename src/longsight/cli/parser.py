"""The parser of every command: no abbreviated options, the nearest name for a wrong one, paths checked before work."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from longsight.cli.paths import PathType


class OptionError(Exception):
    """The value of an option cannot be used. The message names the option, the value and what is accepted."""


class Parser(argparse.ArgumentParser):
    """Complains in one line, like every other error of this program, and checks what the options name.

    Subparsers are made of this class too. `path_options` of the result maps each path given to the option's name
    and to what it wants.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"longsight: error: {message} (try: {self.prog} --help)\n")

    def parse_known_args(  # type: ignore[override]  # argparse's own overloads say no more than this
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse does, except that nothing unknown is left over: that is an error here."""
        given = list(sys.argv[1:] if args is None else args)
        self._refuse_unknown(given)
        known, extra = super().parse_known_args(given, namespace)
        if extra:
            self.error(f"unrecognized arguments: {' '.join(extra)}")
        if (commands := self._commands()) is not None and getattr(known, commands.dest) is None:
            self.print_help()
            self.exit()
        self._check_paths(known)
        return known, extra

    def _commands(self) -> argparse._SubParsersAction[Any] | None:
        return next((a for a in self._actions if isinstance(a, argparse._SubParsersAction)), None)

    def _refuse_unknown(self, given: Sequence[str]) -> None:
        """Name the wrong word before argparse misses something else because of it."""
        commands = self._commands()
        for word in given:
            if word == "--":
                return
            if word.startswith("--") and " " not in word:
                if (name := word.partition("=")[0]) not in self._option_string_actions:
                    self.error(f"there is no option {name}{self._instead(name)}")
            elif commands is not None and not word.startswith("-"):
                if word not in commands.choices:
                    self.error(
                        f"argument {commands.metavar}: invalid choice: {word!r}{_nearest(word, commands.choices)} "
                        f"(choose from {', '.join(commands.choices)})"
                    )
                return  # the rest is the command's own

    def _instead(self, name: str) -> str:
        if name == "--model" and any(a.dest == "model" and not a.option_strings for a in self._actions):
            return f"; the model is a positional argument: {self.prog} MODEL"
        return _nearest(name, self._option_string_actions)

    def _check_paths(self, known: argparse.Namespace) -> None:
        names: dict[str, tuple[str, str]] = dict(getattr(known, "path_options", {}))
        for action in self._actions:
            if not isinstance(action.type, PathType) or (value := getattr(known, action.dest, None)) is None:
                continue
            name = "/".join(action.option_strings) or str(action.metavar or action.dest)
            for path in value if isinstance(value, list) else [value]:
                if (problem := action.type.problem(path)) is not None:
                    raise OptionError(f"argument {name}: {problem}")
                names[str(path)] = name, action.type.wants
        known.path_options = names


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""
