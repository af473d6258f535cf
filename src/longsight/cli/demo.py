"""`longsight demo`: a real server reads a million tokens of real text and answers from the middle of it."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from longsight.cli.numbers import number, positive, seed, threads
from longsight.cli.parser import OptionError
from longsight.cli.paths import InputFile, OutputDirectory

EPILOG = """\
examples:
  longsight demo                        # 1,048,576 tokens: minutes
  longsight demo --tokens 131072        # the same in less than half a minute
  longsight demo --text war-and-peace.txt --depth 0.5
  longsight demo constructed --tokens 65536

At 1,048,576 tokens the first token of the answer came after 3 min 40 s on two Zen 5 cores, and after 7 min 36 s on two
2.6 GHz Zen 4 cores with other work beside it, where 131,072 tokens took 26 s from start to end.

The embedded model is small, trained by recipes/embedded to answer questions about what it reads, and asked in a chat.
It was right in 200 of 200 such questions, 40 of them at 1,048,576 tokens, and may still be wrong in the next. The
constructed model is not trained: it goes on with what followed the best earlier match, and is asked with the sentence's
own beginning. Both are right only if sparse attention selects the one block, of thousands, that holds the needle. The
exit code is 1 if the answer is wrong.
"""
LEAST_TOKENS = 128  # the sentence, the question, the markup of a chat, and some text around them
CHARACTERS = 4  # at most, that a token stands for in such text, on average; text that is too short repeats


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="read a million tokens of real text and answer from the middle of it",
        description="Hide a sentence in real text, serve a built-in model, ask for the sentence over HTTP.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", nargs="?", choices=("embedded", "constructed"), default="embedded", help="default: embedded"
    )
    parser.add_argument("--tokens", type=positive, default=1 << 20, metavar="N", help="prompt length (default 1048576)")
    parser.add_argument(
        "--text",
        type=InputFile("a text file"),
        metavar="FILE",
        help="text to read; default: what is found on the machine",
    )
    parser.add_argument(
        "--depth", type=number, metavar="D", help="where to hide it, 0 (start) to 1; default: at random"
    )
    parser.add_argument("--seed", type=seed, metavar="N", help="of the depth and the code; default: at random")
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads; default: all cores")
    parser.add_argument(
        "--out", type=OutputDirectory(), default=Path("demo-out"), metavar="DIR", help="for the pictures (demo-out)"
    )


def run(args: argparse.Namespace) -> int:
    if args.tokens < LEAST_TOKENS:
        raise OptionError(
            f"argument --tokens: {args.tokens} tokens cannot hold the sentence, the question and text around them; "
            f"the least is {LEAST_TOKENS}"
        )
    if args.depth is not None and not 0 <= args.depth <= 1:
        raise OptionError(f"argument --depth: depth is {args.depth}; it must lie between 0 (start) and 1 (end)")
    import torch

    from longsight.chat.template import ChatTemplate
    from longsight.cli.demo_dense import price_dense
    from longsight.cli.demo_puzzle import chat_puzzle, text_puzzle
    from longsight.cli.demo_report import draw, peak_bytes, report, report_dense
    from longsight.cli.demo_server import ANSWER_TOKENS, Run, ask, serving
    from longsight.cli.demo_text import gather_text
    from longsight.engine import Engine
    from longsight.model import ModelConfig, load_model
    from longsight.model.built_in import CONSTRUCTED, model_dir
    from longsight.model.tokenizer import Tokenizer

    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)  # that it can't be made is better known before the model reads
    seed = random.randrange(10**6) if args.seed is None else args.seed
    depth = random.Random(seed).random() if args.depth is None else args.depth
    constructed = args.model == CONSTRUCTED
    path = model_dir(args.model)
    most = ModelConfig.from_file(path / "config.json").max_position_embeddings - ANSWER_TOKENS
    if args.tokens > most:
        raise OptionError(
            f"argument --tokens: {args.tokens:,} tokens are more than this model reads; the most is {most:,}"
        )
    tokenizer, template = Tokenizer.from_dir(path), ChatTemplate.from_checkpoint(path)
    text, source = gather_text(args.tokens * (1 if constructed else CHARACTERS), args.text)
    if constructed:
        puzzle = text_puzzle(text, args.tokens, depth, seed)
    else:
        puzzle = chat_puzzle(text, args.tokens, depth, seed, tokenizer, template)
    print(f"text    {source}; {puzzle.tokens:,} tokens, {len(puzzle.text):,} characters")
    print(f"needle  token {puzzle.needle[0]:,}, depth {depth:.3f}, seed {seed}")
    print(f"asked   {puzzle.question}")

    model = load_model(path)
    made = "constructed, not trained" if constructed else "embedded, trained by recipes/embedded"
    print(f"model   {made}; {model.weight_bytes / 1e6:.1f} MB; backend {model.backend.NAME}")
    result = Run()
    engine = Engine(model, tokenizer, max_model_len=puzzle.tokens + ANSWER_TOKENS, on_step=result.steps.append)
    with serving(engine, tokenizer, template) as (url, requests):
        ask(url, puzzle, result)
    peak = peak_bytes()
    dense = price_dense(model, puzzle.tokens)
    report(puzzle, result, requests[0], engine, peak)
    report_dense(puzzle.tokens, result, dense)
    draw(args.out, puzzle, result, requests[0], tokenizer, engine, dense)
    return 0 if puzzle.is_right(result.answer) else 1
