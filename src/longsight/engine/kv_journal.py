"""Which page of a pool file holds which prefix: an append-only file that a crash can cut short but not corrupt."""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from longsight.engine.page_chain import DIGEST_SIZE
from longsight.engine.prefix_cache import StoredPage

MAGIC, VERSION, KEY_BYTES = b"LSKVJNL\0", 2, 32
_HEADER = struct.Struct(f"<8sI{KEY_BYTES}sI")  # magic, version, key, crc of what is before
# page, digest, parent, checksum of the page's data, bytes of tokens, bytes of extra; then these two and a crc of it all
_RECORD = struct.Struct(f"<I{DIGEST_SIZE}s{DIGEST_SIZE}s{DIGEST_SIZE}sII")
_CRC = struct.Struct("<I")
MAX_PART = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A page and the checksum of its bytes when it was recorded."""

    stored: StoredPage
    checksum: bytes


def read(path: Path, key: bytes) -> tuple[list[Entry], str | None]:
    """The entries of a journal for `key`, oldest first, up to the first damaged one; or none, and why."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], None
    if len(data) < _HEADER.size:
        return [], "its header is cut short"
    magic, version, found, crc = _HEADER.unpack_from(data)
    if magic != MAGIC or crc != crc32(data[: _HEADER.size - _CRC.size]):
        return [], "it is no journal of a page pool, or a damaged one"
    if version != VERSION:
        return [], f"it has format {version}, this version reads {VERSION}"
    if found != key:
        return [], "it belongs to another model, page geometry, backend or instruction set"
    entries, at = [], _HEADER.size
    while (entry := _entry(data, at)) is not None:
        entries.append(entry[0])
        at = entry[1]
    return entries, None


def write(path: Path, key: bytes, entries: Iterable[Entry]) -> None:
    """A journal of these entries in the place of the old one, all or nothing."""
    head = _HEADER.pack(MAGIC, VERSION, key, 0)[: -_CRC.size]
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(head + _CRC.pack(crc32(head)) + b"".join(encode(entry) for entry in entries))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def encode(entry: Entry) -> bytes:
    stored = entry.stored
    tokens = stored.tokens.tobytes()
    head = _RECORD.pack(stored.page, stored.digest, stored.parent, entry.checksum, len(tokens), len(stored.extra))
    record = head + tokens + stored.extra
    return record + _CRC.pack(crc32(record))


def _entry(data: bytes, at: int) -> tuple[Entry, int] | None:
    """The entry at an offset and where the next begins; None where it is cut short or damaged."""
    if at + _RECORD.size > len(data):
        return None
    page, digest, parent, checksum, token_bytes, extra_bytes = _RECORD.unpack_from(data, at)
    end = at + _RECORD.size + token_bytes + extra_bytes
    if max(token_bytes, extra_bytes) > MAX_PART or token_bytes % 4 or end + _CRC.size > len(data):
        return None
    if _CRC.unpack_from(data, end)[0] != crc32(data[at:end]):
        return None
    tokens = array("i")
    tokens.frombytes(data[at + _RECORD.size : at + _RECORD.size + token_bytes])
    return Entry(StoredPage(page, digest, parent, tokens, data[end - extra_bytes : end]), checksum), end + _CRC.size
