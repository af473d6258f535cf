"""Token files: documents as token ids, memory-mapped.

A directory of three files, all numbers little-endian:

tokens.bin      uint16 or uint32 [tokens]   the ids of all documents, one after the other
documents.bin   uint64 [documents + 1]      where each document begins, and at last the number of tokens
header.json     format, version, dtype, tokens, documents, vocab_size, tokenizer (SHA-256 of its tokenizer.json)

`longsight tokenize` puts tokenizer.json beside them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from longsight.model.tokenizer import TextError, Tokenizer
from longsight.train.errors import DataError
from longsight.train.tokenizer import cut

Ids = np.ndarray[Any, np.dtype[Any]]
HEADER, TOKENS, DOCUMENTS = "header.json", "tokens.bin", "documents.bin"
FORMAT, VERSION = "longsight-tokens", 1
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
ENCODED_AT_ONCE = 1 << 20  # characters of one piece, and about a quarter of those encoded together


@dataclass(frozen=True)
class Header:
    """What header.json says; a number of documents or tokens is at most 2^53."""

    format: str
    version: int
    dtype: str
    tokens: int
    documents: int
    vocab_size: int
    tokenizer: str

    @classmethod
    def read(cls, path: Path) -> Header:
        """Raises DataError for anything but a header that this version wrote."""
        try:
            data = json.loads(path.read_bytes())
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise DataError(f"{path} is no header of a token file: its format is not {FORMAT!r}")
        if data.get("version") != VERSION:
            raise DataError(f"{path}: version is {data.get('version')!r}; this program reads version {VERSION}")
        if data.get("dtype") not in list(DTYPES):
            raise DataError(f"{path}: dtype is {data.get('dtype')!r}; expected one of {', '.join(DTYPES)}")
        for key, least, most in (("tokens", 0, 2**53), ("documents", 0, 2**53), ("vocab_size", 1, 2**31)):
            if type(data.get(key)) is not int or not least <= data[key] <= most:
                raise DataError(f"{path}: {key} is {data.get(key)!r}; expected a whole number from {least} to {most}")
        if not isinstance(data.get("tokenizer"), str):
            raise DataError(f"{path}: tokenizer is {data.get('tokenizer')!r}; expected a SHA-256")
        return cls(**{name: data[name] for name in cls.__dataclass_fields__})


class TokenFile:
    """A token file, checked and mapped. Not read into memory."""

    def __init__(self, path: Path) -> None:
        """Raises DataError for missing or damaged files."""
        self.path = path
        self.header = header = Header.read(path / HEADER)
        self._tokens = _mapped(path / TOKENS, DTYPES[header.dtype], header.tokens)
        self.offsets = _mapped(path / DOCUMENTS, np.dtype("<u8"), header.documents + 1)  # [documents + 1]
        good = self.offsets[0] == 0 and self.offsets[-1] == header.tokens
        if not good or (self.offsets[1:] < self.offsets[:-1]).any():
            raise DataError(f"{path / DOCUMENTS}: offsets must rise from 0 to {header.tokens}, the number of tokens")

    def __len__(self) -> int:
        return self.header.documents

    def lengths(self) -> Ids:
        """int64 [documents]: tokens of each."""
        return np.diff(self.offsets).astype(np.int64)

    def read(self, document: int, start: int, stop: int) -> Ids:
        """int64 [stop - start]: tokens start .. stop - 1 of a document.

        Raises DataError for ids beyond the vocabulary, IndexError for places outside the document.
        """
        first, end = int(self.offsets[document]), int(self.offsets[document + 1])
        if not 0 <= start <= stop <= end - first:
            raise IndexError(f"tokens {start} to {stop} of document {document}, which has {end - first}")
        ids = self._tokens[first + start : first + stop].astype(np.int64)
        if ids.size and ids.max() >= self.header.vocab_size:
            raise DataError(
                f"{self.path / TOKENS}: document {document} holds id {ids.max()}; the vocabulary has "
                f"{self.header.vocab_size}"
            )
        return ids


class TokenWriter:
    """Writes a token file beside its place and moves it there when the context ends without an error."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if `path` exists."""
        if path.exists():
            raise DataError(f"{path} exists already; remove it or name another directory")
        self.path, self._part = path, path.with_name(path.name + ".part")
        self._vocab_size, self._hash, self._dtype = 0, "", "uint16"
        self._offsets = [0]
        self._file: BinaryIO

    def __enter__(self) -> TokenWriter:
        shutil.rmtree(self._part, ignore_errors=True)
        self._part.mkdir(parents=True)
        self._file = (self._part / TOKENS).open("wb")
        return self

    def begin(self, vocab_size: int, tokenizer_hash: str) -> None:
        """Before the first document: what its ids mean."""
        self._vocab_size, self._hash = vocab_size, tokenizer_hash
        self._dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"

    @property
    def directory(self) -> Path:
        """Where files that belong to the token file can be put while it is written."""
        return self._part

    @property
    def tokens(self) -> int:
        return self._offsets[-1]

    @property
    def documents(self) -> int:
        return len(self._offsets) - 1

    def add(self, ids: Sequence[int] | Ids) -> None:
        """One document; one without tokens is left out. Raises DataError for ids beyond the vocabulary."""
        array = np.asarray(ids, dtype=np.int64)
        if not array.size:
            return
        if array.min() < 0 or array.max() >= self._vocab_size:
            raise DataError(f"ids {array.min()} to {array.max()}; the vocabulary has {self._vocab_size}")
        self._file.write(array.astype(DTYPES[self._dtype]).tobytes())
        self._offsets.append(self._offsets[-1] + array.size)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is not None:
            shutil.rmtree(self._part, ignore_errors=True)
            return
        (self._part / DOCUMENTS).write_bytes(np.asarray(self._offsets, dtype="<u8").tobytes())
        header = Header(FORMAT, VERSION, self._dtype, self.tokens, self.documents, self._vocab_size, self._hash)
        (self._part / HEADER).write_text(json.dumps(asdict(header), indent=2) + "\n")
        self._part.rename(self.path)


def write_texts(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    writer: TokenWriter,
    *,
    before: Sequence[int] = (),
    after: Sequence[int] = (),
) -> None:
    """Add each text as a document: `before`, its tokens, `after`. Literals of special tokens in it are plain text.

    The library encodes on all cores. Raises DataError for text that no UTF-8 can spell.
    """
    for group in _groups(texts):
        pieces = [list(cut(text, ENCODED_AT_ONCE)) for text in group]
        try:
            flat = iter(tokenizer.encode_plain_batch([piece for parts in pieces for piece in parts]))
        except TextError as error:
            raise DataError(f"after document {writer.documents}: {error}") from error
        for parts in pieces:
            ids = [np.asarray(next(flat), dtype=np.int64) for _ in parts]
            writer.add(np.concatenate([np.asarray(before, np.int64), *ids, np.asarray(after, np.int64)]))


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if characters >= 4 * ENCODED_AT_ONCE:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _mapped(path: Path, dtype: np.dtype[Any], count: int) -> Ids:
    try:
        size = path.stat().st_size
        if size != count * dtype.itemsize:
            raise DataError(
                f"{path} has {size:,} bytes; its header's {count:,} numbers of {dtype.itemsize} bytes would be "
                f"{count * dtype.itemsize:,}"
            )
        return np.memmap(path, dtype=dtype, mode="r", shape=(count,)) if count else np.empty(0, dtype)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
