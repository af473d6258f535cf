"""`longsight completion`: a script that lets the shell complete commands, options and paths.

Made by shtab from the parsers, once: completing starts no Python, which argcomplete would with every press of Tab.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from longsight.cli.paths import ModelDirectory, OutputDirectory, PathType

SHELLS = ("bash", "zsh", "fish")
EPILOG = """\
examples:
  eval "$(longsight completion bash)"     # in bash; as a line of ~/.bashrc, for every shell
  eval "$(longsight completion zsh)"      # in zsh; as a line of ~/.zshrc, after compinit
  longsight completion fish | source      # in fish; as a line of ~/.config/fish/config.fish
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "completion",
        help="print what makes a shell complete this command",
        description="Print a script that makes bash, zsh or fish complete commands, options and paths.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def run(args: argparse.Namespace) -> int:
    import shtab

    from longsight.cli.main import parser

    root = parser()
    for action in _actions(root):
        if isinstance(action.type, PathType):
            directory = isinstance(action.type, OutputDirectory | ModelDirectory)
            action.complete = shtab.DIRECTORY if directory else shtab.FILE
    print(shtab.complete(root, shell=args.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _actions(child)
