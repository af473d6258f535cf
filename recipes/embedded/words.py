"""Words and names that generated tasks draw from: those of Debian's word list that the corpus uses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

WORDS, NAMES = "words.txt", "names.txt"
LEAST_WORD, LEAST_NAME = 8, 3  # times in the corpus: known words, and no rare ones that nobody meant to teach


def write(work: Path, listed: Iterable[str], counts: Mapping[str, int]) -> None:
    """Two files of one entry a line, sorted: lower-case words and capitalised ones, 3 to 10 letters of ASCII."""
    words, names = set(), set()
    entries = set(listed)
    for entry in entries:
        if re.fullmatch(r"[a-z]{3,10}", entry) and counts.get(entry, 0) >= LEAST_WORD:
            words.add(entry)
        # A name is no ordinary word at the start of a sentence.
        elif (
            re.fullmatch(r"[A-Z][a-z]{2,9}", entry)
            and entry.lower() not in entries
            and counts.get(entry, 0) >= LEAST_NAME
        ):
            names.add(entry)
    for file, found in ((WORDS, words), (NAMES, names)):
        (work / file).write_text("".join(f"{entry}\n" for entry in sorted(found)), encoding="ascii")


def read(work: Path) -> tuple[list[str], list[str]]:
    """(words, names), sorted. Raises FileNotFoundError before the corpus is made."""
    words, names = ((work / file).read_text(encoding="ascii").split() for file in (WORDS, NAMES))
    return words, names
