"""Which paragraphs are prose, and which documents are worth reading."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

SHORTEST_PARAGRAPH = 60  # characters; shorter ones are kept as headings of what follows
SHORTEST_DOCUMENT = 400  # characters
LONGEST_DOCUMENT = 60_000  # characters; longer ones are parted between paragraphs
COMMON = re.compile(r"(the|of|and|to|a|in|is|that|for|it|as|with|be|on|by|this|are|or|from|at|was|his|you|not)", re.I)
LEGAL = re.compile(
    r"copyright (©|\(c\)|\d{4})|©|all rights reserved|without (even the implied )?warranty|permission is granted"
    r"|redistribution and use|under the terms of the|creative commons|general public license",
    re.I,
)


def is_prose(paragraph: str) -> bool:
    """Made of words, in English, with sentences; not a listing, a reference or a notice."""
    if len(paragraph) < SHORTEST_PARAGRAPH or LEGAL.search(paragraph):
        return False
    letters = sum(c.isalpha() or c == " " for c in paragraph)
    if letters < 0.88 * len(paragraph) or sum(c > "\x7f" for c in paragraph) > 0.02 * len(paragraph):
        return False
    words = paragraph.split()
    plain = sum(re.fullmatch(r"[\"'(\[]*[A-Za-z][a-z'-]*[.,;:!?)\]\"']*", word) is not None for word in words)
    common = sum(COMMON.fullmatch(word) is not None for word in words)
    return plain > 0.75 * len(words) and common > 0.12 * len(words)


def is_heading(paragraph: str) -> bool:
    return 3 <= len(paragraph) < SHORTEST_PARAGRAPH and re.fullmatch(r"[A-Za-z0-9][\w ,.':?-]*", paragraph) is not None


def is_said(paragraph: str) -> bool:
    """A short line of a dialogue."""
    return re.fullmatch(r"(?:[A-Z][\w -]*: )?[A-Z\"'(][\x20-\x7e]*[.!?\"']", paragraph) is not None


PLAIN = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "…": "...", "–": "-", "—": "--", "\xa0": " ", "\xad": None}
)


def plain(paragraph: str) -> str:
    """Quotes and dashes as a keyboard has them, no blank before a full stop."""
    return re.sub(r" +([.,;:?!])(?= |$)", r"\1", " ".join(paragraph.translate(PLAIN).split()))


class Cleaner:
    """Keeps prose, each paragraph the first time it is seen."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def documents(self, paragraphs: Iterable[str], *, dialogue: bool = False) -> list[str]:
        """Documents of a file's paragraphs, which blank lines part; none if too little of it is new prose."""
        kept: list[str] = []
        heading, known = "", 0
        for paragraph in map(plain, paragraphs):
            if is_prose(paragraph) or (dialogue and is_said(paragraph)):
                if self._is_new(paragraph):
                    kept += [heading, paragraph] if heading else [paragraph]
                else:
                    known += 1
                heading = ""
            else:
                heading = paragraph if is_heading(paragraph) else ""
        if known > len(kept):
            return []
        return [text for text in _parted(kept) if len(text) >= SHORTEST_DOCUMENT]

    def _is_new(self, paragraph: str) -> bool:
        letters = re.sub(r"[^a-z]+", "", paragraph.lower())
        key = hashlib.blake2b(letters.encode(), digest_size=12).digest()
        if key in self._seen:
            return False
        self._seen.add(key)
        return True


def _parted(paragraphs: list[str]) -> list[str]:
    texts: list[str] = []
    part: list[str] = []
    size = 0
    for paragraph in paragraphs:
        if size and size + len(paragraph) > LONGEST_DOCUMENT:
            texts.append("\n\n".join(part))
            part, size = [], 0
        part.append(paragraph)
        size += len(paragraph) + 2
    return [*texts, "\n\n".join(part)]
