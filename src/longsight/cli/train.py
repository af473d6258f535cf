"""`longsight train`: pretrain a model, or go on training one, as a TOML file says."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from longsight.cli.numbers import threads
from longsight.cli.paths import InputFile, OutputDirectory

if TYPE_CHECKING:
    from longsight.train.loop import Trainer

EXAMPLES = """\
examples:
  longsight train examples/recall.toml              # train a small model that looks things up: minutes on one core
  longsight train run.toml --resume                 # go on where a killed or interrupted run was last saved
  longsight train run.toml --out runs/b --set run.seed=1 --set stage.sparse.steps=500 --set optimizer.matrices.lr=0.01
  torchrun --nproc-per-node 8 -m longsight.cli.main train run.toml      # eight processes of one machine

The run writes to its output directory: log.csv (a row a step), tensorboard/, curves.png, checkpoints/ to resume from,
and at its end model/, which `longsight generate`, `longsight serve` and LLM(...) load. Ctrl-C finishes the step, saves
and stops; a second one stops at once. A resumed run has the same losses, to the bit, as one never interrupted.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a model",
        description="Train a model as a TOML file says: its shape, its data, its optimisers and its stages.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", metavar="CONFIG", type=InputFile("a TOML file"), help="the TOML file; docs/training.md lists its keys"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=OutputDirectory(), help="write here instead of to the file's run.out"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in DIR, if there is one")
    again.add_argument("--restart", action="store_true", help="delete what an earlier run left in DIR and begin anew")
    parser.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one value of the file, as run.seed=1 or stage.NAME.steps=100; may be given several times",
    )
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads; default: all cores")


def run(args: argparse.Namespace) -> int:
    import torch

    from longsight.train import output
    from longsight.train.config import TrainConfig
    from longsight.train.loop import Trainer
    from longsight.train.parallel import processes

    if args.threads:
        torch.set_num_threads(args.threads)
    config = TrainConfig.from_file(args.config, args.assignments)
    if args.out:
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, out=args.out))
    with processes() as group, output.taken(config.run.out, group, resume=args.resume, restart=args.restart):
        if not group.main:
            logging.getLogger("longsight").setLevel(logging.ERROR)  # one process says it for all
        trainer = Trainer(config, group)
        if args.resume and (warning := trainer.resume()) and group.main:
            print(f"longsight: {warning}", file=sys.stderr)
        with _stops_politely(trainer) as signals:
            if trainer.run():
                return 0
        if group.main:
            print(f"longsight: stopped after step {trainer.place.step}; to go on: {_again(args)}", file=sys.stderr)
        return 128 + (signals[0] if signals else signal.SIGTERM)


@contextmanager
def _stops_politely(trainer: Trainer) -> Iterator[list[int]]:
    """SIGINT and SIGTERM let the step end and save; a second SIGINT interrupts. Yields the signals that came."""
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in came:
            raise KeyboardInterrupt
        came.append(number)
        trainer.stop = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _again(args: argparse.Namespace) -> str:
    """The command that goes on."""
    parts = ["longsight", "train", str(args.config)]
    parts += ["--out", str(args.out)] if args.out else []
    parts += [part for assignment in args.assignments for part in ("--set", assignment)]
    return shlex.join([*parts, "--resume"])
