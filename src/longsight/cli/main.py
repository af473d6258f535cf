"""`longsight COMMAND`: finds the command, and turns every expected error into one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from longsight import __version__
from longsight.cli.parser import OptionError, Parser
from longsight.extras import EXTRA_OF, install_command

COMMANDS = (
    "serve",
    "chat",
    "generate",
    "train",
    "tokenize",
    "eval",
    "convert",
    "keys",
    "usage",
    "cost",
    "bench",
    "demo",
    "completion",
)
DESCRIPTION = """\
MiniMax-M3-style models with exact sparse attention, on the hardware you have.

  longsight serve                             # serve the embedded model on http://127.0.0.1:8000/v1
  longsight serve path/to/checkpoint          # serve a checkpoint directory
  longsight chat                              # talk with the embedded model in the terminal
  longsight generate path/to/checkpoint -f book.txt             # continue a text, without a server
  longsight demo                              # read a million tokens and answer from the middle of them
  longsight train examples/recall.toml        # train a model
  longsight tokenize book.txt --train-vocab 4096 --out data/book  # text -> token ids, to train on
  longsight eval path/to/checkpoint --lengths 1K,16K --out results  # needles, variables and word counts
  longsight convert path/to/Qwen3 --text a.txt --out DIR        # sparse attention for a dense transformers model
  longsight bench http://127.0.0.1:8000       # how fast an OpenAI-compatible server answers
  longsight cost path/to/checkpoint           # FLOPs, bytes and memory at each context length
  longsight keys create NAME --auth keys.db   # make an API key for `longsight serve --auth keys.db`
  longsight usage --ledger usage.db           # what was used, and what it came to

`longsight COMMAND --help` explains each command with examples.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. 0: done; 1: an error, told in one line on stderr; 2: wrong usage; 130: interrupted."""
    args = argparse.Namespace()
    try:
        try:
            args = parser().parse_args(arguments)
            logging.basicConfig(level=logging.WARNING, format="longsight: %(levelname)s: %(message)s")
            code: int = args.run(args)
        finally:
            sys.stdout.flush()  # also of --help and --version, which leave with SystemExit
        return code
    except KeyboardInterrupt:
        print("longsight: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has seen enough. Python would complain again when it closes stdout at exit.
        sys.stdout = None
        return 1
    except OptionError as error:
        return _failed(str(error))
    except Exception as error:
        message = _one_line(error, args)
        if message is None:
            raise
        return _failed(message)


def parser() -> Parser:
    """The parser of `longsight`, with that of each command in it."""
    root = Parser("longsight", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    root.add_argument("--version", action="version", version=f"longsight {__version__}")
    subparsers = root.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"longsight.cli.{name}")
        module.add_parser(subparsers)
        subparsers.choices[name].set_defaults(run=module.run)
    return root


def _failed(message: str) -> int:
    print(f"longsight: error: {message}", file=sys.stderr)
    return 1


def _one_line(error: Exception, args: argparse.Namespace) -> str | None:
    """What to tell the user; None for a defect, whose traceback is wanted."""
    # Imported here because it brings torch along, which `--help` can do without.
    from longsight.ops import LongsightError

    if isinstance(error, LongsightError | OSError):
        return _with_option(error, " ".join(str(error).split()), args)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return _out_of_memory(str(error))
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if missing in EXTRA_OF:
        return f"this command needs {missing}, which is not installed; try: {install_command(EXTRA_OF[missing])}"
    return None


def _with_option(error: Exception, message: str, args: argparse.Namespace) -> str:
    """The message, and before it the option that named the file or directory which the system refused."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.filename):
        cause = cause.__cause__
    if isinstance(cause, OSError) and isinstance(cause.filename, str | os.PathLike):
        for path, (option, wants) in getattr(args, "path_options", {}).items():
            if Path(path) in (Path(cause.filename), *Path(cause.filename).parents):
                return f"argument {option}: {message}" + (f"; it must be {wants}" if cause is error else "")
    return message


def _out_of_memory(message: str) -> str:
    """What PyTorch or Python could not have, without the source file where it noticed."""
    from longsight.engine.memory import available_bytes

    asked = re.search(r"tried to allocate (\d+) bytes", message)
    what = f"out of memory: asked for {int(asked[1]):,} bytes" if asked else "out of memory"
    return (
        f"{what}, of {available_bytes():,} that are free; close other programs, or take a smaller model, shorter texts "
        "or fewer of them at once"
    )


if __name__ == "__main__":
    sys.exit(main())
