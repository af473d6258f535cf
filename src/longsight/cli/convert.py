"""`longsight convert`: an index branch for a dense model of the transformers library."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from longsight.cli.numbers import count, positive, rate, threads
from longsight.cli.paths import InputFile, ModelDirectory, NewDirectory
from longsight.cli.progress import ProgressBar

if TYPE_CHECKING:
    from longsight.hf.convert import Result
    from longsight.hf.packing import Step

EPILOG = """\
examples:
  longsight convert path/to/Qwen3-4B --text books/*.txt --out qwen3-4b-sparse
  longsight convert path/to/Llama --text code.txt --length 8192 --steps 1000 --continue-steps 500 --train-backbone \\
      --out llama-sparse

Two stages. In the first the model is frozen and attends densely, and the index branch learns where it attends
(--steps). In the second attention reads only the chosen blocks, and the branch goes on learning on those
(--continue-steps); with --train-backbone the model itself learns too, to predict the text. "captured" is the share of
dense attention that falls on the chosen blocks, for tokens that see more blocks than they choose: near 1 the sparse
model does what the dense one did.

The result runs inside the transformers library: it loads with longsight.hf.load(DIR), or with AutoModelForCausalLM
once longsight.hf is imported. `longsight serve` and `longsight eval` cannot run it. The original is only read. Llama,
Mistral, Qwen2 and Qwen3 models without sliding windows can be converted.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "convert",
        help="give a dense model of the transformers library sparse attention",
        description="Give an existing grouped-query model an index branch, train it on text, save the sparse model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        type=ModelDirectory(built_in=False),
        metavar="MODEL",
        help="a directory that transformers loads; nothing is downloaded, so fetch a model of a hub first: "
        "hf download ORG/NAME --local-dir DIR",
    )
    parser.add_argument(
        "--text",
        nargs="+",
        type=InputFile("a UTF-8 text file"),
        required=True,
        metavar="FILE",
        help="UTF-8 text to train on",
    )
    parser.add_argument(
        "--out",
        type=NewDirectory(empty=True),
        required=True,
        metavar="DIR",
        help="where the sparse model goes; must be new",
    )
    sizes = parser.add_argument_group("what each token reads")
    sizes.add_argument("--block-size", type=positive, default=128, metavar="B", help="tokens of a block (128)")
    sizes.add_argument(
        "--topk", type=positive, default=16, metavar="K", help="blocks chosen, the own one included (16)"
    )
    sizes.add_argument("--index-dim", type=positive, metavar="D", help="channels of an index head (a main head's)")
    training = parser.add_argument_group("training")
    training.add_argument("--length", type=positive, default=4096, metavar="N", help="tokens of a document (4096)")
    training.add_argument("--batch", type=positive, default=1, metavar="N", help="such lengths in a step (1)")
    training.add_argument("--steps", type=count, default=200, metavar="N", help="of the dense stage (200)")
    training.add_argument("--continue-steps", type=count, default=100, metavar="N", help="of the sparse stage (100)")
    training.add_argument("--train-backbone", action="store_true", help="the sparse stage trains the model itself too")
    training.add_argument("--index-lr", type=rate, default=0.02, metavar="LR", help="of the branch, by Muon (0.02)")
    training.add_argument("--backbone-lr", type=rate, default=1e-5, metavar="LR", help="of the model, by AdamW (1e-5)")
    training.add_argument(
        "--seed", type=count, default=0, metavar="N", help="the same seed repeats the same weights (0)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the model, here and as saved (float32)"
    )
    parser.add_argument("--device", default="cpu", metavar="NAME", help="where torch trains: cpu, cuda, cuda:1 (cpu)")
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads; default: all cores")


def run(args: argparse.Namespace) -> int:
    import torch
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from longsight.hf.convert import LOG, Settings, convert

    disable_progress_bar()
    set_verbosity_error()  # it would warn that the index branch is new, which is the purpose
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = Settings(
        block_size=args.block_size,
        topk=args.topk,
        index_dim=args.index_dim,
        length=args.length,
        batch=args.batch,
        warmup_steps=args.steps,
        continue_steps=args.continue_steps,
        train_backbone=args.train_backbone,
        index_lr=args.index_lr,
        backbone_lr=args.backbone_lr,
        seed=args.seed,
        dtype=getattr(torch, args.dtype),
        device=args.device,
    )
    done, total = 0, settings.warmup_steps + settings.continue_steps
    with ProgressBar("converting") as bar:

        def progress(step: Step) -> None:
            nonlocal done
            done += step.stage in ("warmup", "sparse")
            mean = sum(step.kl) / len(step.kl)
            bar.update(done, total, f"{step.stage}, KL {mean:.3f}, {step.tokens / step.seconds:,.0f} tokens/s")
            if step.captured is not None and not sys.stderr.isatty():
                print(f"longsight: {line(step)}", file=sys.stderr, flush=True)

        result = convert(args.model, args.text, args.out, settings, progress)
    print_table(result)
    print(f"longsight: wrote {args.out}; every step is in {args.out / LOG}", file=sys.stderr)
    return 0


def line(step: Step) -> str:
    """One measured step: KL and captured mass, means over the layers, and the loss where there is one."""
    loss = "" if step.loss is None else f", loss {step.loss:.3f}"
    captured = step.captured or ()
    layers = max(len(captured), 1)
    return (
        f"{step.stage} {step.step}: KL {sum(step.kl) / len(step.kl):.3f}, captured {sum(captured) / layers:.3f}{loss}"
    )


def print_table(result: Result) -> None:
    """KL and captured mass of each layer, before and after."""
    from rich.console import Console
    from rich.table import Table

    where = "text kept apart" if result.held_out else "training text (too little to keep any apart)"
    caption = "captured: share of dense attention in the chosen blocks"
    table = Table(title=f"index branch, on {where}", caption=caption)
    for column in ("layer", "KL before", "KL after", "captured before", "captured after"):
        table.add_column(column, justify="right")
    before, after = result.before, result.after
    rows = zip(before.kl, after.kl, before.captured or (), after.captured or (), strict=True)
    for layer, row in enumerate(rows):
        table.add_row(str(layer), *(f"{value:.3f}" for value in row))
    Console().print(table)
