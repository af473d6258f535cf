"""Options that say how tokens are chosen, and the parameters they make."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from longsight.cli.numbers import count, number, positive, seed

if TYPE_CHECKING:
    from longsight.engine import SamplingParams


def add_sampling_arguments(parser: argparse.ArgumentParser, *, max_tokens: int | None = None) -> None:
    """max_tokens: what an answer may have at most where the option is silent; None leaves it to the model."""
    default = "default: the model's own" if max_tokens is None else f"{max_tokens}"
    parser.add_argument(
        "--max-tokens", type=positive, default=max_tokens, metavar="N", help=f"most tokens of an answer ({default})"
    )
    parser.add_argument("--temperature", type=number, metavar="T", help="0 to 2; 0 = always the likeliest token")
    parser.add_argument(
        "--top-p", type=number, metavar="P", help="draw from the likeliest tokens that reach P together"
    )
    parser.add_argument("--top-k", type=count, metavar="K", help="draw from the K likeliest tokens; 0 = from all")
    parser.add_argument(
        "--min-p", type=number, metavar="P", help="leave out tokens less than P times as likely as the likeliest"
    )
    parser.add_argument("--seed", type=seed, metavar="N", help="the same seed repeats the same answer")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times"
    )


def sampling_params(args: argparse.Namespace, checkpoint: Path) -> SamplingParams:
    """What the options say; where they are silent, what the checkpoint does.

    Raises InvalidRequestError naming the option, and what reading the checkpoint's defaults raises.
    """
    from longsight.engine import InvalidRequestError, SamplingDefaults, SamplingParams

    defaults = SamplingDefaults.from_checkpoint(checkpoint)
    try:
        return SamplingParams(
            max_tokens=args.max_tokens,
            temperature=defaults.temperature if args.temperature is None else args.temperature,
            top_p=defaults.top_p if args.top_p is None else args.top_p,
            top_k=defaults.top_k if args.top_k is None else args.top_k,
            min_p=0.0 if args.min_p is None else args.min_p,
            seed=args.seed,
            stop=tuple(args.stop),
        )
    except InvalidRequestError as error:
        option = f"--{(error.param or '').replace('_', '-')}"
        raise InvalidRequestError(f"argument {option}: {error}", error.param) from error
