"""Options that `serve` and `generate` share, and what they build: model, tokenizer, engine."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longsight.cli.numbers import byte_size, http_url, port, positive, seconds, threads
from longsight.cli.paths import ModelDirectory, OutputDirectory
from longsight.cli.progress import ProgressBar

if TYPE_CHECKING:
    from longsight.engine import Engine
    from longsight.model import Model
    from longsight.model.tokenizer import Tokenizer

__all__ = ["byte_size", "http_url", "port", "positive", "seconds"]  # numbers.py has them; these are in common use
DTYPES = ("bfloat16", "float32")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        type=ModelDirectory(),
        metavar="MODEL",
        help="a directory with config.json, *.safetensors and tokenizer.json, or a built-in model: embedded (default), "
        "small and trained to answer questions in the words of the text it is given, or constructed, written by "
        "formula, which goes on with what followed the best earlier match",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of weights and cache; default: as the checkpoint says")
    parser.add_argument(
        "--backend", help="cpu (compiled kernels) or reference (plain PyTorch, slow); default: the fastest that runs"
    )
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads; default: all cores")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-model-len",
        type=positive,
        metavar="TOKENS",
        help="the most tokens one request may come to, prompt and answer together; default: the model's own limit, or "
        "what the cache holds",
    )
    parser.add_argument(
        "--kv-memory",
        type=byte_size,
        metavar="SIZE",
        help="memory for the cache, as 8GiB or in bytes; default: what the longest request needs, if it is free",
    )
    parser.add_argument(
        "--kv-dir",
        type=OutputDirectory(),
        metavar="DIR",
        help="keep the cache in files of this directory: contexts may be larger than memory, and prompts read before a "
        "restart are not read again after it",
    )
    parser.add_argument(
        "--no-prefix-cache", action="store_true", help="read every prompt anew, even where another began alike"
    )
    parser.add_argument(
        "--no-speculation",
        action="store_true",
        help="generate one token per step; else tokens are guessed from earlier text and verified, which changes speed "
        "but never the answer",
    )
    parser.add_argument(
        "--chunk-tokens", type=positive, default=2048, metavar="N", help="prompt tokens per step (default 2048)"
    )


@dataclass(frozen=True)
class Loaded:
    model: Model
    tokenizer: Tokenizer


def model_path(args: argparse.Namespace) -> Path:
    """The directory of the checkpoint that MODEL means, as model_dir reads it."""
    from longsight.model.built_in import model_dir

    return model_dir(args.model)


def load(path: Path, args: argparse.Namespace) -> Loaded:
    """Set the threads and load model and tokenizer, with a progress bar if a terminal watches."""
    import torch

    from longsight.model import load_model
    from longsight.model.tokenizer import Tokenizer

    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype) if args.dtype else None
    with ProgressBar("loading", is_bytes=True) as bar:
        model = load_model(path, dtype=dtype, backend=args.backend, progress=bar.update)
    return Loaded(model, Tokenizer.from_dir(path))


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """What add_engine_arguments reads, under the names that Engine and LLM have for it."""
    return {
        "max_model_len": args.max_model_len,
        "kv_bytes": args.kv_memory,
        "chunk_tokens": args.chunk_tokens,
        "prefix_cache": not args.no_prefix_cache,
        "speculate": not args.no_speculation,
        "kv_dir": args.kv_dir,
    }


def build_engine(loaded: Loaded, args: argparse.Namespace, max_running: int = 1) -> Engine:
    from longsight.engine import Engine
    from longsight.engine.grammar import GrammarCompiler
    from longsight.model.fingerprint import fingerprint
    from longsight.model.tokenizer import FILE

    config = loaded.model.config
    return Engine(
        loaded.model,
        loaded.tokenizer,
        max_running=max_running,
        grammars=GrammarCompiler(
            model_path(args) / FILE, vocab_size=config.vocab_size, eos_token_ids=config.eos_token_ids
        ),
        fingerprint=fingerprint(model_path(args)) if args.kv_dir else b"",
        **engine_options(args),
    )
