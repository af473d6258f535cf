"""Real text for the demo: what lies on the machine anyway."""

from __future__ import annotations

import string
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from longsight.cli.demo_errors import NotEnoughTextError

# METADATA holds a package's description; topics.py, of pydoc, the chapters of Python's reference.
DOCUMENTS = (".rst", ".md", ".txt", "METADATA", "topics.py")
SOURCES = (".py",)
PROSE = 0.85  # share of letters among what is no white space; source code and JSON have less
NO_LETTERS = str.maketrans("", "", string.ascii_letters)


def gather_text(characters: int, file: Path | None = None) -> tuple[str, str]:
    """At least `characters` ASCII characters if there are that many, and where they come from.

    From `file`, or from the Python installation in a fixed order: prose, other documents, sources. Copies of one file,
    such as licences, are taken once. What is not ASCII is dropped, so that a character is one token where tokens are
    bytes. Raises NotEnoughTextError when there is nothing to read.
    """
    if file is not None:
        try:
            text = _ascii(file.read_bytes())
        except OSError as error:
            raise NotEnoughTextError(f"cannot read {file}: {error.strerror}") from error
        source = str(file)
    else:
        parts: dict[str, None] = {}  # ordered, and each once
        length = 0
        for part in _texts():
            if part not in parts:
                parts[part] = None
                length += len(part)
            if length >= characters:
                break
        text = "".join(parts)
        source = f"documents and sources of this Python installation ({len(parts):,} file{'s'[: len(parts) != 1]})"
    if len(text) < 1000:
        raise NotEnoughTextError(f"{source}: only {len(text)} characters of text; give a longer one with --text")
    return text, source


def is_prose(text: str) -> bool:
    return len("".join(text.translate(NO_LETTERS).split())) <= (1 - PROSE) * len("".join(text.split()))


def _texts() -> Iterator[str]:
    """What people wrote for people comes first; what cannot be read is passed over."""
    roots = dict.fromkeys(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))
    files = [
        path
        for root in roots
        for path in sorted(root.rglob("*"))
        if path.name.endswith((*DOCUMENTS, *SOURCES)) and not {"test", "tests"} & set(path.parts) and path.is_file()
    ]
    others = []
    for text in _read(path for path in files if path.name.endswith(DOCUMENTS)):
        if is_prose(text):
            yield text
        else:
            others.append(text)
    yield from others
    yield from _read(path for path in files if not path.name.endswith(DOCUMENTS))


def _read(paths: Iterator[Path]) -> Iterator[str]:
    for path in paths:
        try:
            yield _ascii(path.read_bytes())
        except OSError:
            continue


def _ascii(raw: bytes) -> str:
    return raw.decode("ascii", errors="ignore")
