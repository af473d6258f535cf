"""Documents out of text files: one a file, or one a line of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longsight.train.errors import DataError

SUFFIXES = (".txt", ".md", ".rst", ".py", ".jsonl")
JSON_LINES = ".jsonl"
Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


@dataclass
class Texts:
    """Files in a fixed order; iterating gives the text of each document, and may be done more than once.

    skipped: files found in directories that are no UTF-8, known after a pass.
    """

    files: tuple[Path, ...]
    named: frozenset[Path]
    text_key: str = "text"
    progress: Progress | None = None
    skipped: list[Path] = field(default_factory=list)

    @classmethod
    def find(
        cls,
        paths: Sequence[Path],
        *,
        suffixes: Sequence[str] = SUFFIXES,
        text_key: str = "text",
        progress: Progress | None = None,
    ) -> Texts:
        """Files as given, and in directories, at any depth, those of `suffixes` in the order of their names.

        Raises DataError for a path that does not exist, and if there is no file at all.
        """
        files: dict[Path, None] = {}
        for path in paths:
            if path.is_dir():
                found = (p for p in path.rglob("*") if p.suffix in suffixes and p.is_file())
                files |= dict.fromkeys(sorted(found))
            elif path.is_file():
                files[path] = None
            else:
                raise DataError(f"{path} does not exist; expected text files or directories of them")
        if not files:
            raise DataError(f"no {' '.join(suffixes)} files in {', '.join(map(str, paths))}")
        return cls(tuple(files), frozenset(paths), text_key, progress)

    def __iter__(self) -> Iterator[str]:
        """Raises DataError for a file that cannot be read, for bad JSON lines, and for bytes that are no UTF-8 in a
        file that was named itself."""
        self.skipped.clear()
        sizes = [file.stat().st_size for file in self.files]
        done, total = 0, sum(sizes)
        for file, size in zip(self.files, sizes, strict=True):
            read = 0
            for text, read in _json_lines(file, self.text_key) if file.suffix == JSON_LINES else self._whole(file):
                if text:
                    yield text
                if self.progress:
                    self.progress(done + min(read, size), total)
            done += size

    def _whole(self, file: Path) -> Iterator[tuple[str, int]]:
        try:
            data = file.read_bytes()
            yield data.decode(), len(data)
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            if file in self.named:
                raise DataError(f"{file} is no UTF-8 text: byte {error.start} is {data[error.start]:#04x}") from None
            self.skipped.append(file)


def _json_lines(file: Path, text_key: str) -> Iterator[tuple[str, int]]:
    """(text, bytes read so far) of each line that is not blank."""
    read = 0
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                read += len(line)
                if line.strip():
                    yield _text_of(line, f"{file}, line {number}", text_key), read
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error


def _text_of(line: bytes, where: str, text_key: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not valid JSON: {error}") from None
    text = record.get(text_key) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{where} must be an object whose {text_key!r} is a text")
    return text
