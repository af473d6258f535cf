"""`longsight cost`: what a model's attention costs at each context length."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from longsight.cli.paths import ModelDirectory

if TYPE_CHECKING:
    from longsight.ops.cost import ModelShape

EPILOG = """\
examples:
  longsight cost                                    # the published MiniMax-M3
  longsight cost path/to/checkpoint                 # a checkpoint directory, or its config.json
  longsight cost --tokens 32768,1000000             # context lengths of your own

"attention" counts attention alone, "forward" the whole model with its matrix products. "all dense" is the same model
with every layer reading everything. A fused multiply-add counts 2; prefill is the causal total of a whole prompt.
"""
DEFAULT_TOKENS = "4096,32768,131072,262144,524288,1048576"


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "cost",
        help="FLOPs, bytes and cache memory of a model at each context length",
        description="FLOPs, bytes and cache memory of a model at each context length, sparse beside dense.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        nargs="?",
        type=ModelDirectory(file=True),
        metavar="MODEL",
        help="checkpoint directory or config.json, or a built-in model: embedded or constructed; default: the "
        "published MiniMax-M3",
    )
    parser.add_argument(
        "--tokens", type=_lengths, default=_lengths(DEFAULT_TOKENS), metavar="N,N,...", help="context lengths"
    )


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from longsight.ops.cost import MINIMAX_M3

    name, shape = "MiniMax-M3 (published)", MINIMAX_M3
    if args.model:
        from longsight.model import ModelConfig
        from longsight.model.built_in import is_built_in, model_dir

        path = model_dir(args.model) if is_built_in(args.model) else Path(args.model)
        shape = ModelConfig.from_file(path / "config.json" if path.is_dir() else path).shape()
        name = args.model
    console = Console()
    for table in _tables(name, shape, args.tokens):
        console.print(table)
    return 0


def _tables(name: str, shape: ModelShape, lengths: list[int]) -> list[Any]:
    from rich.table import Table

    from longsight.ops import cost

    layer = Table(title=f"{name}: one sparse attention layer")
    for column in ("context", "dense", "index", "main", "ratio", "GQA read", "MSA read", "ratio"):
        layer.add_column(column, justify="right")
    layer.caption = "GFLOP per prompt token (causal average); bytes read per decoded token"
    for n in lengths:
        a = shape.attention
        dense, sparse = cost.dense_prefill_flops(a, n), cost.msa_prefill_flops(a, n)
        gqa, msa = cost.gqa_decode_bytes(a, n), cost.msa_decode_bytes(a, n)
        layer.add_row(
            f"{n:,}",
            f"{dense / n / 1e9:.3f}",
            f"{cost.index_prefill_flops(a, n) / n / 1e9:.3f}",
            f"{cost.main_prefill_flops(a, n) / n / 1e9:.3f}",
            f"{dense / sparse:.2f}x",
            _bytes(gqa),
            _bytes(msa),
            f"{gqa / msa:.2f}x",
        )
    prefill = Table(title=f"{name}: {shape.full_layers} full and {shape.sparse_layers} sparse layers, prefill")
    decode = Table(title=f"{name}: {shape.full_layers} full and {shape.sparse_layers} sparse layers, decode and cache")
    prefill.caption = "PFLOP for the whole prompt"
    decode.caption = "read per decoded token; cache: keys, values, index keys"
    columns = ("attention", "attention\nall dense", "ratio", "forward", "forward\nall dense")
    for table, last in ((prefill, "ratio"), (decode, "cache")):
        for column in ("context", *columns, last):
            table.add_column(column, justify="right", no_wrap=True)
    for n in lengths:
        prefill.add_row(
            f"{n:,}",
            *_beside(cost.attention_prefill_flops, shape, n, _petaflop),
            *_beside(cost.forward_prefill_flops, shape, n, _petaflop),
        )
        decode.add_row(
            f"{n:,}",
            *_beside(cost.attention_decode_bytes, shape, n, _bytes),
            *_beside(cost.forward_decode_bytes, shape, n, _bytes)[:2],  # eight columns would not fit in 80 characters
            _bytes(cost.kv_bytes_per_token(shape) * n),
        )
    return [layer, prefill, decode]


class _Cost(Protocol):
    def __call__(self, model: ModelShape, n: int, *, all_dense: bool = False) -> int: ...


def _beside(cost: _Cost, shape: ModelShape, n: int, show: Callable[[float], str]) -> tuple[str, str, str]:
    """As the model is, with all layers dense, and the ratio of the two."""
    own, dense = cost(shape, n), cost(shape, n, all_dense=True)
    return show(own), show(dense), f"{dense / own:.2f}x"


def _petaflop(count: float) -> str:
    return f"{count / 1e15:,.3g}" if count < 1e18 else f"{count / 1e15:,.0f}"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:,.2f} TiB"


def _lengths(text: str) -> list[int]:
    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError:
        lengths = []
    if not lengths or min(lengths) < 1 or max(lengths) > 1 << 40:
        raise argparse.ArgumentTypeError(f"{text!r} must be whole numbers from 1 to 2^40, separated by commas")
    return lengths
