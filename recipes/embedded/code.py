"""Program sources and marked-up pages as they are, for the embedded model: `python -m recipes.embedded.code`.

Texts that people ask about are not all prose. Code and markup repeat themselves as no prose does, and a model that has
only seen sentences goes astray in them. Takes files of the packages in RAW, a share of each package, and writes

    work/code       a token directory, with the tokenizer that `python -m recipes.embedded.tokenizer` made
    CODE.md         package, version, licence as its copyright file states it, characters taken
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from longsight.cli.progress import ProgressBar
from longsight.model.markup import DOCUMENT, END_OF_TURN
from longsight.model.tokenizer import FILE, Tokenizer
from longsight.train.errors import DataError
from longsight.train.tokenizer import file_hash
from longsight.train.tokens import TokenWriter, write_texts
from recipes.embedded import licences, packages
from recipes.embedded.corpus import HERE, WORK
from recipes.embedded.sources import MILLION, Source

LICENCE = re.compile(r"usr/share/doc/[^/]+/copyright(\.gz)?")
RAW = (
    Source("libpython3.11-stdlib", r"\.py$", 3 * MILLION, licence="PSF-2.0"),
    Source("python3-django", r"\.py$", 2 * MILLION),
    Source("python3-numpy", r"\.py$", 2 * MILLION),
    Source("perl-modules-5.36", r"\.p[lm]$", 1 * MILLION),
    Source("libjs-jquery-ui", r"/jquery-ui\.js$", 1 * MILLION),
    Source("git-doc", r"\.(html|txt)$", 1 * MILLION),
    Source("sqlite3-doc", r"\.html$", 1 * MILLION),
    Source("apache2-doc", r"/manual/en/.*\.html(\.gz)?$", 1 * MILLION),
    Source("libboost1.74-dev", r"\.hpp$", 2 * MILLION),
)


def choose(source: Source, deb: Path) -> tuple[str, list[str]]:
    """The licence, and files of the package in a random order that never changes, at most `at_most` characters."""
    licence, files = source.licence or "", {}
    wanted = re.compile(source.files)
    for path, text in packages.members(deb, lambda path: bool(wanted.search(path) or LICENCE.fullmatch(path))):
        if wanted.search(path):
            files[path] = text
        else:
            licence = licence or licences.stated(text)
    if not licence:
        raise packages.PackageError(f"{source.package}: no licence recognised; name it in the list of sources")
    paths = sorted(files)
    Random(source.package).shuffle(paths)
    chosen, size = [], 0
    for path in paths:
        if size + len(files[path]) <= source.at_most:
            chosen.append(files[path])
            size += len(files[path])
    return licence, chosen


def make(work: Path, debs: Path, table: Path) -> None:
    """Raises PackageError where a package cannot be had or used, DataError without a tokenizer."""
    tokenizer_file = work / "tokens" / FILE
    if not tokenizer_file.is_file():
        raise DataError(f"{tokenizer_file} does not exist; python -m recipes.embedded.tokenizer writes it")
    tokenizer = Tokenizer.from_file(tokenizer_file)
    with ProgressBar("downloading packages") as bar:
        debian = packages.fetch([source.package for source in RAW], debs, bar.update)
    lines, documents = [], []
    for source in RAW:
        licence, texts = choose(source, debian[source.package])
        documents += texts
        version, size = packages.version(debian[source.package]), sum(map(len, texts))
        lines.append(f"| {source.package} | {version} | {licence} | {len(texts):,} | {size:,} |")
    Random(0).shuffle(documents)
    ids, out = tokenizer.added_tokens, work / "code"
    shutil.rmtree(out, ignore_errors=True)
    with TokenWriter(out) as writer:
        shutil.copyfile(tokenizer_file, writer.directory / FILE)
        writer.begin(tokenizer.vocab_size, file_hash(tokenizer_file))
        write_texts(documents, tokenizer, writer, before=[ids[DOCUMENT]], after=[ids[END_OF_TURN]])
    head = [
        "# Code and pages that the embedded model read as they are",
        "",
        "Written by `python -m recipes.embedded.code`; packages are those of Debian 12, main section.",
        "",
        "| package | version | licence | documents | characters |",
        "|---|---|---|---:|---:|",
    ]
    table.write_text("\n".join([*head, *lines, ""]), encoding="utf-8")
    print(f"{out}: documents {len(documents):,}, tokens {writer.tokens:,}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.embedded.code",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="where to write (default %(default)s)")
    parser.add_argument("--debs", type=Path, metavar="DIR", help="where packages are kept (default DIR/debs)")
    parser.add_argument("--sources", type=Path, default=HERE / "CODE.md", metavar="FILE", help="the table")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        make(options.work, options.debs or options.work / "debs", options.sources)
    except (packages.PackageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{time.monotonic() - started:.0f} seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
