"""``python -m bench.quality.evaluating STUDY.toml RUN``: one trained run of a study through its evaluations.

RUN is the run's directory under --out, as `dense-0`. What is there already is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.quality.study import Run, Study
from longsight.cli.progress import ProgressBar
from longsight.evals import evaluate
from longsight.evals.haystack import Document, read_documents
from longsight.evals.suite import Texts
from longsight.model.tokenizer import FILE, Tokenizer
from longsight.ops.errors import LongsightError
from longsight.train.config import TrainConfig
from longsight.train.data import TokenSource
from longsight.train.tokens import TokenFile


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m bench.quality.evaluating", description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, help="where the study's runs are")
    parser.add_argument("--threads", type=int, help="CPU threads")
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        study = Study.from_file(args.study)
        runs = {run.directory: run for run in study.runs()}
        if args.run not in runs:
            parser.error(f"{args.run!r} is no run of {args.study}; there are {', '.join(runs)}")
        evaluate_run(study, runs[args.run], args.out / args.run)
    except LongsightError as error:
        print(f"quality: error: {error}", file=sys.stderr)
        return 1
    return 0


def evaluate_run(study: Study, run: Run, directory: Path) -> None:
    texts = study_texts(study)
    with ProgressBar("evaluating") as bar:
        for settings in study.evaluations(run.arm):
            evaluate(directory / "model", settings, directory / "evals", texts=texts, progress=bar.name_and_update)


def study_texts(study: Study) -> Texts:
    """What the study's prompts are made of. Raises EvalError and DataError."""
    if study.held_out is None:
        return Texts(read_documents(study.text), loss=read_documents(study.loss_text))
    config = TrainConfig.from_file(study.train, study.assignments)
    source = next(source for source in config.data if source.name == study.held_out)
    assert source.tokens is not None  # Study.check_data saw to it
    opened = TokenSource(source.name, TokenFile(source.tokens), source.part)
    return held_out(opened, study.evaluation.get("loss_length", 0))


def held_out(source: TokenSource, loss_length: int) -> Texts:
    """Documents as text; loss is measured on those of `loss_length` tokens or more, if there are any."""
    tokenizer = Tokenizer.from_file(source.tokens.path / FILE)
    documents, long = [], []
    for number, length in zip(source.documents.tolist(), source.lengths.tolist(), strict=True):
        text = tokenizer.decode(source.tokens.read(number, 0, length).tolist())
        documents.append(Document.of_text(f"document {number}", text))
        if length >= loss_length:
            long.append(documents[-1])
    return Texts(documents, loss=long or documents)


if __name__ == "__main__":
    sys.exit(main())
