"""Text for the embedded model, out of Debian packages: `python -m recipes.embedded.corpus`.

Downloads the packages that sources.py lists, keeps the English prose of their documentation, and writes

    work/corpus.jsonl   one document a line, {"source": package, "text": ...}, in a random order that never changes
    SOURCES.md          package, version, licence as its copyright file states it, characters taken

Run again after an interruption, it goes on where it was: packages and what was read out of each are kept under work/.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from xml.etree import ElementTree

from longsight.cli.progress import ProgressBar
from longsight.train.errors import DataError
from recipes.embedded import extract, licences, packages
from recipes.embedded.clean import Cleaner
from recipes.embedded.sources import SOURCES, Source

HERE = Path(__file__).parent
WORK = HERE / "work"
DIALOGUES = ("wesnoth-", "endless-sky")
TABLE_HEAD = ("| package | version | licence | documents | characters |", "|---|---|---|---:|---:|")
SHORTEST_READ = 20  # characters of a paragraph worth keeping before cleaning


@dataclass(frozen=True)
class Read:
    """What one package holds: its licence, and the paragraphs of each file."""

    source: Source
    version: str
    licence: str
    files: list[list[str]]


def read(source: Source, deb: Path, cache: Path) -> Read:
    """A package's paragraphs, out of `cache` if this package was read before by the same readers."""
    readers = Path(extract.__file__).read_bytes() + Path(packages.__file__).read_bytes()
    key = hashlib.sha256(readers + f"{source.files} {deb.name}".encode()).hexdigest()[:16]
    kept = cache / f"{source.package}-{key}.json"
    if not kept.exists():
        licence = ""
        files: dict[str, list[str]] = {}
        notice = packages.notice(source.package)
        for path, text in packages.members(deb, lambda path: source.takes(path) or bool(notice.fullmatch(path))):
            if notice.fullmatch(path):
                licence = licences.stated(text)
                continue
            try:
                found = extract.from_osis(text) if "/sword/" in path else extract.by_path(path, text)
            except ElementTree.ParseError:
                continue
            files[path] = [paragraph for paragraph in found if len(paragraph) >= SHORTEST_READ]
        cache.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part")
        content = {"licence": licence, "files": [files[path] for path in sorted(files)]}
        part.write_text(json.dumps(content, ensure_ascii=False))
        part.rename(kept)
    data = json.loads(kept.read_text())
    return Read(source, packages.version(deb), licence_of(source, data["licence"]), data["files"])


def licence_of(source: Source, stated: str) -> str:
    """stated: by the copyright file, or "". Raises PackageError where a person must read it."""
    licence = source.licence or stated
    if not licence:
        raise packages.PackageError(
            f"{source.package}: no licence recognised in its copyright file; name it in sources.py"
        )
    return licence


def fitting(texts: Iterable[str], at_most: int) -> list[str]:
    """Those that fit one after the other into `at_most` characters; what is too long is passed over."""
    chosen: list[str] = []
    size = 0
    for text in texts:
        if size + len(text) <= at_most:
            chosen.append(text)
            size += len(text)
    return chosen


def choose(read: Read, cleaner: Cleaner, seed: int = 0) -> list[str]:
    """Documents of one package, at most `at_most` characters: its files in a random order, the same every time."""
    files = list(read.files)
    Random(f"{seed} {read.source.package}").shuffle(files)
    dialogue = read.source.package.startswith(DIALOGUES)
    texts = (text for paragraphs in files for text in cleaner.documents(paragraphs, dialogue=dialogue))
    return fitting(texts, read.source.at_most)


def sources_table(rows: Iterable[tuple[Read, Sequence[str]]], seconds: float) -> str:
    """SOURCES.md."""
    lines = [
        "# What the embedded model read",
        "",
        "Written by `python -m recipes.embedded.corpus`; packages are those of Debian 12, main section. Licences are",
        "what each package's copyright file states, the one of most files first.",
        "",
        *TABLE_HEAD,
    ]
    documents = characters = 0
    for read, texts in rows:
        size = sum(map(len, texts))
        documents, characters = documents + len(texts), characters + size
        lines.append(table_row(read.source, read.version, read.licence, texts))
    lines.append(f"| all | | | {documents:,} | {characters:,} |")
    return "\n".join([*lines, "", f"Made in {seconds / 60:.1f} minutes, downloads included.", ""])


def table_row(source: Source, version: str, licence: str, texts: Sequence[str]) -> str:
    return f"| {source.package} | {version} | {licence} | {len(texts):,} | {sum(map(len, texts)):,} |"


def make(work: Path, debs: Path, table: Path) -> None:
    """Everything the module's docstring names. Raises PackageError where a package cannot be had or used."""
    started = time.monotonic()
    names = [source.package for source in SOURCES]
    with ProgressBar("downloading packages") as bar:
        files = packages.fetch(names, debs, bar.update)
    cleaner = Cleaner()
    rows: list[tuple[Read, list[str]]] = []
    with ProgressBar("reading packages") as bar:
        for number, source in enumerate(SOURCES):
            bar.update(number, len(SOURCES), source.package)
            found = read(source, files[source.package], work / "read")
            rows.append((found, choose(found, cleaner)))
    documents = [(found.source.package, text) for found, texts in rows for text in texts]
    Random(0).shuffle(documents)
    with (work / "corpus.jsonl").open("w", encoding="utf-8") as out:
        for package, text in documents:
            out.write(json.dumps({"source": package, "text": text}, ensure_ascii=False) + "\n")
    table.write_text(sources_table(rows, time.monotonic() - started), encoding="utf-8")
    size = sum(len(text) for _, text in documents)
    print(f"{work / 'corpus.jsonl'}: documents {len(documents):,}, characters {size:,}, packages {len(rows)}")


def run(
    make: Callable[[Path, Path, Path], None], module: str, about: str | None, table: str, given: Sequence[str] | None
) -> int:
    """A command line for make(work, debs, table), which takes texts out of packages; about: of --help. Exit code."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog=f"python -m {module}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="where to write (default %(default)s)")
    parser.add_argument("--debs", type=Path, metavar="DIR", help="where packages are kept (default DIR/debs)")
    parser.add_argument(
        "--sources", type=Path, default=HERE / table, metavar="FILE", help="the table (default %(default)s)"
    )
    options = parser.parse_args(given)
    try:
        make(options.work, options.debs or options.work / "debs", options.sources)
    except (packages.PackageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    return run(make, "recipes.embedded.corpus", __doc__, "SOURCES.md", arguments)


if __name__ == "__main__":
    sys.exit(main())
