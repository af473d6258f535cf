"""`longsight eval`: what a model can do at which length."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from longsight.cli.numbers import positive, seed, threads
from longsight.cli.options import DTYPES, model_path
from longsight.cli.paths import InputFile, InputPath, ModelDirectory, OutputDirectory
from longsight.cli.progress import ProgressBar
from longsight.sizes import parse_size

if TYPE_CHECKING:
    from longsight.evals.tasks import QaItem

EPILOG = """\
examples:
  longsight eval path/to/checkpoint --lengths 1K,4K,16K --out results
  longsight eval path/to/checkpoint --lengths 4K,64K --text books/ --loss 64K --out results
  longsight eval path/to/checkpoint --attention configured dense static k=8 block=32 --lengths 256,4K --out sweep
  longsight eval path/to/checkpoint --suite recall --lengths 256,1K,4K,16K --out recall

suites: ruler (needles: single, multikey, multiquery, multivalue; tracking: variables set to each other; common and
frequent: counting words; qa: about real documents), recall (tokens without language, for models trained on that task),
loss (only what --loss asks for).

attentions, all with the same weights: configured; dense: sparse layers read everything; static: a window, anchors and
random blocks instead of the learned choice (static:window=2,stride=64,random=1 to say which); k=N, block=N: another
number of blocks (from the forced ones up) or tokens per block (a multiple of 16).

A model with a chat template is asked questions through it, as `longsight serve` would ask; any other, or every one with
--no-chat-template, has to continue a sentence. Answers are greedy and must hold the right one. DIR gets results.json,
results.md, accuracy.png and loss.png; a run that was interrupted goes on where it stopped when the same command is
given again. docs/evals.md says how tasks are made.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "eval",
        help="accuracy on long-context tasks, and loss by position",
        description="Ask a model long-context questions with known answers at several lengths, under several kinds of "
        "attention, and write tables and plots with confidence intervals.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        nargs="?",
        type=ModelDirectory(),
        metavar="MODEL",
        help="a checkpoint directory, or a built-in model: embedded (default) or constructed",
    )
    parser.add_argument(
        "--out", type=OutputDirectory(), required=True, metavar="DIR", help="where results go, and are kept"
    )
    parser.add_argument("--suite", choices=("ruler", "recall", "loss"), default="ruler", help="which tasks (ruler)")
    parser.add_argument("--tasks", type=_names, metavar="NAME,...", help="these tasks of any suite instead")
    parser.add_argument(
        "--lengths",
        type=_lengths,
        default=(),
        metavar="N,N,...",
        help="prompt and answer together, in tokens: 256,4K,1M",
    )
    parser.add_argument("--trials", type=positive, default=20, metavar="N", help="prompts per task and length (20)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="the same seed gives the same prompts (0)")
    parser.add_argument("--attention", nargs="+", default=["configured"], metavar="KIND", help="see below (configured)")
    parser.add_argument(
        "--text",
        nargs="+",
        type=InputPath(),
        default=[],
        metavar="FILE",
        help="hide needles in these files or directories, and ask about them; default: generated sentences, and no qa",
    )
    parser.add_argument(
        "--qa",
        type=InputFile("a file of JSON lines"),
        metavar="FILE",
        help="JSON lines with document, question and answers (a list), for qa",
    )
    parser.add_argument(
        "--loss", type=_length, default=0, metavar="N", help="also the loss by position in documents of N tokens"
    )
    parser.add_argument(
        "--loss-text",
        nargs="+",
        type=InputPath(),
        default=[],
        metavar="FILE",
        help="of this text; default: that of --text",
    )
    parser.add_argument("--loss-documents", type=positive, default=8, metavar="N", help="how many documents (8)")
    parser.add_argument(
        "--no-chat-template",
        action="store_true",
        help="have the model continue a sentence; default: a model with a chat template is asked questions through it",
    )
    parser.add_argument("--likelihood", action="store_true", help="also the log-probability of the right answers")
    parser.add_argument(
        "--recall-vocab",
        type=_counts,
        default=(64, 64, 1024),
        metavar="F,V,K",
        help="fillers, values and keys of the recall suite (64,64,1024)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of weights and cache; default: as the checkpoint says")
    parser.add_argument("--backend", help="cpu or reference; default: the fastest that runs")
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads; default: all cores")


def run(args: argparse.Namespace) -> int:
    import torch

    from longsight.evals import SUITES, EvalSettings, Variant, evaluate
    from longsight.evals.haystack import read_documents
    from longsight.evals.report import markdown
    from longsight.evals.suite import Texts
    from longsight.train.recall import Vocabulary

    if args.threads:
        torch.set_num_threads(args.threads)
    settings = EvalSettings(
        tasks=args.tasks or SUITES[args.suite],
        lengths=args.lengths,
        trials=args.trials,
        seed=args.seed,
        variants=tuple(Variant.parse(text) for text in args.attention),
        likelihood=args.likelihood,
        chat_template=not args.no_chat_template,
        loss_length=args.loss,
        loss_documents=args.loss_documents,
        recall=Vocabulary(*args.recall_vocab),
        dtype=args.dtype,
    )
    texts = Texts(read_documents(args.text), _pairs(args.qa) if args.qa else (), read_documents(args.loss_text))
    with ProgressBar("evaluating") as bar:
        results = evaluate(
            model_path(args), settings, args.out, texts=texts, backend=args.backend, progress=bar.name_and_update
        )
    report = markdown(results)
    (args.out / "results.md").write_text(report, encoding="utf-8")
    print(report, end="")
    from longsight.evals.plots import plot_results

    for path in plot_results(results, args.out):
        print(f"\n{path}")
    return 0


def _pairs(path: Path) -> list[QaItem]:
    """Raises EvalError naming the line that is wrong."""
    from longsight.evals import EvalError
    from longsight.evals.tasks import QaItem

    items = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            document, question, answers = item["document"], item["question"], item["answers"]
        except (ValueError, TypeError, KeyError) as error:
            raise EvalError(
                f"{path}, line {number}: {error}; each line is a JSON object with document, question and answers"
            ) from error
        if not (isinstance(document, str) and isinstance(question, str)) or not (
            isinstance(answers, list) and answers and all(isinstance(a, str) and a for a in answers)
        ):
            raise EvalError(f"{path}, line {number}: document and question must be texts, answers a list of texts")
        items.append(QaItem(document, question, tuple(answers)))
    return items


def _length(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a length; write 256, 4K or 1M") from None


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(sorted({_length(part) for part in text.split(",")}))


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _counts(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers: fillers, values, keys")
    fillers, values, keys = map(positive, parts)
    return fillers, values, keys
