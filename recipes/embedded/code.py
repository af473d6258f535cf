"""Program sources and marked-up pages as they are, for the embedded model: `python -m recipes.embedded.code`.

Texts that people ask about are not all prose. Code and markup repeat themselves as no prose does, and a model that has
only seen sentences goes astray in them. Takes files of the packages in sources.RAW, a share of each package, and writes

    work/code       a token directory, with the tokenizer that `python -m recipes.embedded.tokenizer` made
    CODE.md         package, version, licence as its copyright file states it, characters taken
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from longsight.cli.progress import ProgressBar
from longsight.model.tokenizer import FILE, Tokenizer
from longsight.train.errors import DataError
from longsight.train.tokens import TokenWriter
from recipes.embedded import corpus, licences, packages
from recipes.embedded.sources import RAW, Source
from recipes.embedded.tokenizer import write


def choose(source: Source, deb: Path) -> tuple[str, list[str]]:
    """The licence, and files of the package in a random order that never changes, at most `at_most` characters."""
    stated, files = "", {}
    wanted, notice = re.compile(source.files), packages.notice(source.package)
    for path, text in packages.members(deb, lambda path: bool(wanted.search(path) or notice.fullmatch(path))):
        if wanted.search(path):
            files[path] = text
        else:
            stated = licences.stated(text)
    paths = sorted(files)
    Random(source.package).shuffle(paths)
    return corpus.licence_of(source, stated), corpus.fitting((files[path] for path in paths), source.at_most)


def make(work: Path, debs: Path, table: Path) -> None:
    """Raises PackageError where a package cannot be had or used, DataError without a tokenizer."""
    started = time.monotonic()
    tokenizer_file = work / "even" / FILE
    if not tokenizer_file.is_file():
        raise DataError(f"{tokenizer_file} does not exist; python -m recipes.embedded.tokenizer writes it")
    with ProgressBar("downloading packages") as bar:
        files = packages.fetch([source.package for source in RAW], debs, bar.update)
    lines, documents = [], []
    for source in RAW:
        deb = files[source.package]
        licence, texts = choose(source, deb)
        documents += texts
        lines.append(corpus.table_row(source, packages.version(deb), licence, texts))
    Random(0).shuffle(documents)
    out = work / "code"
    shutil.rmtree(out, ignore_errors=True)
    with TokenWriter(out) as writer:
        shutil.copyfile(tokenizer_file, writer.directory / FILE)
        write(documents, Tokenizer.from_file(tokenizer_file), writer)
    head = [
        "# Code and pages that the embedded model read as they are",
        "",
        "Written by `python -m recipes.embedded.code`; packages are those of Debian 12, main section.",
        "",
        *corpus.TABLE_HEAD,
    ]
    table.write_text("\n".join([*head, *lines, ""]), encoding="utf-8")
    seconds = time.monotonic() - started
    print(f"{out}: documents {len(documents):,}, tokens {writer.tokens:,}, seconds {seconds:.0f}")


def main(arguments: Sequence[str] | None = None) -> int:
    return corpus.run(make, "recipes.embedded.code", __doc__, "CODE.md", arguments)


if __name__ == "__main__":
    sys.exit(main())
