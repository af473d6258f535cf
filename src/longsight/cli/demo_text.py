"""Real text for the demo: what lies on the machine anyway."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from longsight.cli.demo_errors import NotEnoughTextError

SUFFIXES = (".py", ".rst", ".md", ".txt")


def gather_text(characters: int, file: Path | None = None) -> tuple[str, str]:
    """At least `characters` ASCII characters if there are that many, and where they come from.

    From `file`, or from sources and documents of the Python installation in a fixed order. What is not ASCII is
    dropped, so that a character is one token. Raises NotEnoughTextError when there is nothing to read.
    """
    if file is not None:
        try:
            text = _ascii(file.read_bytes())
        except OSError as error:
            raise NotEnoughTextError(f"cannot read {file}: {error.strerror}") from error
        source = str(file)
    else:
        parts: list[str] = []
        length = files = 0
        for path in _documents():
            try:
                parts.append(_ascii(path.read_bytes()))
            except OSError:
                continue
            length += len(parts[-1])
            files += 1
            if length >= characters:
                break
        text, source = (
            "".join(parts),
            f"sources and documents of this Python installation ({files:,} file{'s'[: files != 1]})",
        )
    if len(text) < 1000:
        raise NotEnoughTextError(f"{source}: only {len(text)} characters of text; give a longer one with --text")
    return text, source


def _documents() -> Iterator[Path]:
    """Readable sources and documents; what cannot be read is passed over."""
    roots = dict.fromkeys(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.suffix in SUFFIXES and "test" not in path.parts and "tests" not in path.parts and path.is_file():
                yield path


def _ascii(raw: bytes) -> str:
    return raw.decode("ascii", errors="ignore")
