"""`longsight generate`: continue one prompt, on the terminal, without a server."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from longsight.cli.options import add_engine_arguments, add_model_arguments, build_engine, load, model_path
from longsight.cli.paths import InputFile
from longsight.cli.progress import ProgressBar
from longsight.cli.sampling import add_sampling_arguments, sampling_params

if TYPE_CHECKING:
    from longsight.engine import Engine, Request

EXAMPLES = """\
examples:
  longsight generate path/to/checkpoint --prompt-file book.txt --max-tokens 200
  longsight generate path/to/checkpoint --prompt "Once upon a time" --temperature 0.7 --seed 1
  cat book.txt question.txt | longsight generate path/to/checkpoint -f - --temperature 0
  longsight generate constructed --prompt "abcabcabcabcabcabcab" --max-tokens 6

The prompt is continued as it stands; no chat template is applied. The answer goes to stdout, everything else to stderr.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "generate",
        help="continue one prompt, without a server",
        description="Read a prompt, however long, and write what the model continues it with.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt itself")
    prompt.add_argument(
        "-f",
        "--prompt-file",
        type=InputFile("a UTF-8 text file, or - for standard input", stdin=True),
        metavar="FILE",
        help="a UTF-8 file with the prompt; - is standard input",
    )
    add_sampling_arguments(parser, max_tokens=256)
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from longsight.engine import Request

    text = args.prompt if args.prompt is not None else read_prompt(args.prompt_file)
    path = model_path(args)
    params = sampling_params(args, path)
    loaded = load(path, args)
    request = Request(loaded.tokenizer.encode(text), params)
    answer(build_engine(loaded, args), request)
    return 0


def read_prompt(file: Path) -> str:
    """A file's text, or standard input's for "-". Raises InvalidRequestError unless it is UTF-8."""
    from longsight.engine import InvalidRequestError

    stdin = str(file) == "-"
    data = sys.stdin.buffer.read() if stdin else file.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        source = "standard input" if stdin else file
        raise InvalidRequestError(f"{source} is not valid UTF-8 at byte {error.start}: {error.reason}") from error


def answer(engine: Engine, request: Request) -> None:
    """Stream the answer to stdout, with a progress bar before it and the figures after it on stderr."""
    total, written = len(request.prompt), ""
    started = first = time.perf_counter()
    with ProgressBar("reading the prompt") as bar:
        for update in engine.generate(request):
            if update.error is not None:
                raise update.error
            if not update.tokens:
                rate = update.processed / (time.perf_counter() - started)
                bar.update(update.processed, total, f"{rate:,.0f} tokens/s")
                continue
            if len(request.output) == len(update.tokens):
                first = time.perf_counter()
                bar.stop()
            if update.text:
                written = update.text
                sys.stdout.write(update.text)
                sys.stdout.flush()
    if not written.endswith("\n"):
        sys.stdout.write("\n")
    report(total, first - started, len(request.output) - 1, time.perf_counter() - first)


def report(prompt_tokens: int, read_seconds: float, more_tokens: int, write_seconds: float) -> None:
    speed = f", then {more_tokens / write_seconds:,.1f} tokens/s" if more_tokens else ""
    print(
        f"longsight: read {prompt_tokens:,} tokens in {read_seconds:.2f} s "
        f"({prompt_tokens / read_seconds:,.0f} tokens/s){speed}",
        file=sys.stderr,
    )
