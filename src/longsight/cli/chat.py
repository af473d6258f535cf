"""`longsight chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from longsight.cli.options import add_engine_arguments, add_model_arguments, engine_options, model_path
from longsight.cli.paths import OutputFile
from longsight.cli.sampling import add_sampling_arguments, sampling_params

if TYPE_CHECKING:
    from longsight.cli.chat_session import Session
    from longsight.cli.chat_terminal import Terminal

EXAMPLES = """\
examples:
  longsight chat                                    # with the embedded model
  longsight chat path/to/checkpoint --system "Answer in one sentence." --temperature 0.7
  cat report.txt question.txt | longsight chat      # one message, one answer, nothing else on standard output
  longsight chat --lines < questions.txt            # one message a line, of one conversation

In a terminal, Enter sends. A line that ends with \\ goes on in the next one; so does everything between two lines of
\"\"\". Ctrl-C stops an answer or clears the line, Ctrl-D or /exit ends, /help lists the commands. Thinking is shown
dimmed, and is not written to a pipe or a file.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "chat",
        help="talk with a model in the terminal",
        description="Talk with a model in the terminal, through the model's own chat template.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    parser.add_argument("--system", default="", metavar="TEXT", help="instructions that stand before the conversation")
    parser.add_argument(
        "--thinking",
        choices=("adaptive", "enabled", "disabled"),
        default="adaptive",
        help="whether the model thinks before it answers; adaptive: it decides (default)",
    )
    parser.add_argument("--lines", action="store_true", help="without a terminal: each line is a message")
    parser.add_argument(
        "--history",
        type=OutputFile(),
        metavar="FILE",
        help="keep what was typed in this file; default: chat-history in $XDG_STATE_HOME/longsight",
    )
    add_sampling_arguments(parser)
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    import torch

    from longsight import LLM
    from longsight.cli.chat_session import Session
    from longsight.cli.chat_terminal import Terminal

    if args.threads:
        torch.set_num_threads(args.threads)
    path = model_path(args)
    params = sampling_params(args, path)
    piped = None if sys.stdin.isatty() else read_messages(lines=args.lines)
    terminal = Terminal()
    dtype = getattr(torch, args.dtype) if args.dtype else None
    with terminal.waiting("loading the model"):
        llm = LLM(args.model, dtype=dtype, backend=args.backend, max_running=1, **engine_options(args))
    with llm:
        session = Session(llm, params, system=args.system, thinking=args.thinking)
        if piped is None:
            terminal.print(f"{args.model or 'embedded'}, up to {llm.engine.max_model_len:,} tokens; /help for help")
            converse(session, terminal, args.history or default_history())
        else:
            for message in piped:
                terminal.show(session.answers(message))
    return 0


def read_messages(*, lines: bool) -> list[str]:
    """What standard input says: one message, or one for each line that isn't empty. Raises InvalidRequestError."""
    from longsight.cli.generate import read_prompt
    from longsight.engine import InvalidRequestError

    text = read_prompt(Path("-"))
    messages = [line for line in text.splitlines() if line.strip()] if lines else [text.strip("\n")]
    if not any(message.strip() for message in messages):
        raise InvalidRequestError("standard input holds no message")
    return messages


def default_history() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "longsight" / "chat-history"


def converse(session: Session, terminal: Terminal, history: Path) -> None:
    """Until the user leaves. Ctrl-C stops an answer; what was said until then stays in the conversation."""
    from longsight.cli.chat_commands import Leave, obey
    from longsight.engine import InvalidRequestError

    with terminal.remembering(history):
        while (message := terminal.read()) is not None:
            try:
                if message.startswith("/") and not message.startswith("//"):
                    terminal.print(obey(message, session))
                elif message.strip():
                    terminal.show(session.answers(message.removeprefix("/") if message[:2] == "//" else message))
            except Leave:
                return
            except InvalidRequestError as error:
                terminal.print(str(error))
            except KeyboardInterrupt:
                terminal.print("\nstopped")
