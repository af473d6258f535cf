"""`longsight COMMAND`: finds the command, and turns every expected error into one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from longsight import __version__

COMMANDS = ("serve", "generate", "train", "tokenize", "eval", "convert", "keys", "usage", "cost", "demo")
DESCRIPTION = """\
MiniMax-M3-style models with exact sparse attention, on the hardware you have.

  longsight serve                                   serve the embedded model on http://127.0.0.1:8000/v1
  longsight serve path/to/checkpoint                serve a checkpoint directory
  longsight generate path/to/checkpoint -f book.txt continue a text, without a server
  longsight train examples/recall.toml              train a model
  longsight eval path/to/checkpoint --lengths 1K,16K  needles, variables and word counts at each length
  longsight keys create NAME --auth keys.db         make an API key for `longsight serve --auth keys.db`
  longsight demo                                    read a million tokens and answer from the middle of them
  longsight cost path/to/checkpoint                 FLOPs, bytes and memory at each context length
  longsight usage --ledger usage.db                 what was used, and what it came to
  longsight tokenize book.txt --train-vocab 4096 --out data/book   text -> token ids, to train on
  longsight convert path/to/Qwen3 --text a.txt --out DIR           sparse attention for a dense transformers model

`longsight COMMAND --help` explains each command with examples.
"""

# Modules that only some commands need, and what installs them.
SERVER, DEMO, EVAL = "longsight[server]", "longsight[demo]", "longsight[eval]"
EXTRAS = {"starlette": SERVER, "uvicorn": SERVER, "pydantic": SERVER, "jinja2": SERVER, "anyio": SERVER}
EXTRAS |= {"python_multipart": SERVER, "sqlalchemy": SERVER, "httpx": SERVER}
EXTRAS |= {"prometheus_client": SERVER, "opentelemetry": "longsight[otel]"}
EXTRAS |= {"openai": DEMO, "matplotlib": DEMO, "scipy": EVAL, "transformers": "longsight[hf]"}
EXTRAS |= {"tensorboard": "longsight[train]"}


class Parser(argparse.ArgumentParser):
    """Complains in one line, like every other error of this program."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"longsight: error: {message} (try: {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. 0: done; 1: an error, told in one line on stderr; 2: wrong usage; 130: interrupted."""
    modules = {name: importlib.import_module(f"longsight.cli.{name}") for name in COMMANDS}
    args = _parser(modules).parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="longsight: %(levelname)s: %(message)s")
    try:
        code: int = modules[args.command].run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("longsight: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has seen enough. Python would complain again when it closes stdout at exit.
        sys.stdout = None
        return 1
    except Exception as error:
        message = _one_line(error)
        if message is None:
            raise
        print(f"longsight: error: {message}", file=sys.stderr)
        return 1


def _parser(modules: dict[str, ModuleType]) -> argparse.ArgumentParser:
    parser = Parser("longsight", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"longsight {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in modules.values():
        module.add_parser(subparsers)
    return parser


def _one_line(error: Exception) -> str | None:
    """What to tell the user; None for a defect, whose traceback is wanted."""
    # Imported here because it brings torch along, which `--help` can do without.
    from longsight.ops import LongsightError

    if isinstance(error, LongsightError | OSError):
        return " ".join(str(error).split())
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if missing in EXTRAS:
        return f"this command needs {missing}, which is not installed; try: pip install '{EXTRAS[missing]}'"
    return None


if __name__ == "__main__":
    sys.exit(main())
