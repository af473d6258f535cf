"""Pages in a memory-mapped file: contexts larger than memory, and prefixes that outlive the process.

The kernel writes mapped pages back whenever it likes and drops them when memory is short: decode touches index keys and
the chosen pages only, so what it needs stays. A killed process loses nothing it wrote. Whether a page still holds what
the journal says is checked when it is first used again: pages are overwritten without a word to the journal, machines
lose power, and files are edited.
"""

from __future__ import annotations

import logging
import mmap
import os
from array import array
from collections.abc import Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

import torch
from torch import Tensor

from longsight.engine import kv_journal
from longsight.engine.errors import EngineConfigError
from longsight.engine.page_chain import DIGEST_SIZE
from longsight.engine.prefix_cache import StoredPage
from longsight.locked import lock_directory
from longsight.ops import LayerPages, PageLayout

log = logging.getLogger("longsight")
POOL, JOURNAL = "pages.bin", "journal.bin"
ALIGNMENT = 2 << 20  # each layer's region starts at a multiple of this many bytes


class KvDirectory:
    """A page pool in `path`, and the journal of which page holds which prefix. Use `open`.

    cache: the pages of each layer, over the mapped file.
    """

    def __init__(
        self,
        path: Path,
        lock: BinaryIO,
        cache: list[LayerPages],
        memory: mmap.mmap,
        entries: Sequence[kv_journal.Entry],
    ) -> None:
        self.path, self.cache = path, cache
        self._lock, self._memory = lock, memory
        self._stored = [entry.stored for entry in entries]
        self._checksums = {entry.stored.page: entry.checksum for entry in entries}
        self._journal: BinaryIO | None = (path / JOURNAL).open("ab", buffering=0)

    @classmethod
    def open(cls, path: Path, *, fingerprint: bytes, layouts: Sequence[PageLayout], pages: int) -> KvDirectory:
        """Take the directory, made if need be, for a pool of `pages` pages in each layer.

        fingerprint: everything that keys and values depend on besides the tokens. A journal of anything else, or a
        damaged one, is ignored with a warning and begun afresh. Raises EngineConfigError if the directory is in use,
        cannot be written, or has no room for the pool, which is reserved here: a disk that fills up later cannot fail
        a write to a page.
        """
        lock = _take(path)
        try:
            key = sha256(fingerprint + f"{pages} pages of {list(layouts)}".encode()).digest()
            offsets, size = _regions(layouts, pages)
            entries, problem = kv_journal.read(path / JOURNAL, key)
            if problem is None and entries and not _has_size(path / POOL, size):
                problem = "the pool file is missing or has another size"
            if problem is not None:
                log.warning("%s: what was kept there is ignored: %s", path, problem)
                entries = []
            entries = [e for e in _latest(entries) if e.stored.page < pages]
            memory = _map(path / POOL, size)
            kv_journal.write(path / JOURNAL, key, entries)
        except OSError as error:
            lock.close()
            raise EngineConfigError(f"the cache directory {path} cannot be used: {error}") from error
        except BaseException:
            lock.close()
            raise
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        cache = [
            LayerPages.over(layout, pages, whole[at : at + pages * layout.page_bytes])
            for layout, at in zip(layouts, offsets, strict=True)
        ]
        return cls(path, lock, cache, memory, entries)

    def stored(self) -> list[StoredPage]:
        """The pages that an earlier run recorded, oldest first; ask `intact` before using one."""
        return self._stored

    def record(self, page: StoredPage) -> None:
        """Remember a full page across restarts. A journal that cannot be written is given up, once, with a warning."""
        if self._journal is None:
            return
        checksum = self._checksum(page.page)
        self._checksums[page.page] = checksum
        try:
            self._journal.write(kv_journal.encode(kv_journal.Entry(page, checksum)))
        except OSError as error:
            log.warning("%s: no more prefixes are kept for later runs: %s", self.path / JOURNAL, error)
            self._journal.close()
            self._journal = None

    def intact(self, page: int) -> bool:
        """Whether a page's bytes are those that were recorded."""
        return self._checksums.get(page) == self._checksum(page)

    def close(self) -> None:
        """Let other processes have the directory. The pages must not be used any more."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self._lock.close()

    def _checksum(self, page: int) -> bytes:
        # It has to find damage, not forgery: a CRC of each part, five times as fast as a digest of everything.
        parts = [crc32(_bytes(tensor[page])) for layer in self.cache for tensor in layer.tensors]
        return blake2b(array("I", parts).tobytes(), digest_size=DIGEST_SIZE).digest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.flatten().view(torch.uint8).numpy().data


def _take(path: Path) -> BinaryIO:
    try:
        return lock_directory(path)
    except BlockingIOError as error:
        raise EngineConfigError(
            f"the cache directory {path} is in use by another process; give each its own"
        ) from error
    except OSError as error:
        raise EngineConfigError(f"the cache directory {path} cannot be used: {error}") from error


def _regions(layouts: Sequence[PageLayout], pages: int) -> tuple[list[int], int]:
    """Where each layer's pages begin in the file, and its size; bytes."""
    offsets, at = [], 0
    for layout in layouts:
        offsets.append(at)
        at += -(-pages * layout.page_bytes // ALIGNMENT) * ALIGNMENT
    return offsets, at


def _has_size(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


def _latest(entries: Sequence[kv_journal.Entry]) -> list[kv_journal.Entry]:
    """Each page's last entry and each prefix's last page, in the order they were written."""
    pages: set[int] = set()
    digests: set[bytes] = set()
    kept = []
    for entry in reversed(entries):
        if entry.stored.page not in pages and entry.stored.digest not in digests:
            kept.append(entry)
        pages.add(entry.stored.page)
        digests.add(entry.stored.digest)
    return kept[::-1]


def _map(path: Path, size: int) -> mmap.mmap:
    """The file, mapped: exactly `size` bytes, all its room reserved. A new one that does not fit is removed."""
    existed = path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
    try:
        if existed and os.fstat(descriptor).st_size != size:
            os.ftruncate(descriptor, 0)
        _reserve(descriptor, size)
        return mmap.mmap(descriptor, size)
    except OSError:
        if not existed:
            path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _reserve(descriptor: int, size: int) -> None:
    """Take all the file's room on the disk now, so that a write through the map cannot fail later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    # macOS and Windows have no such call; zeros take the room too.
    end = os.lseek(descriptor, 0, os.SEEK_END)
    while end < size:
        end += os.write(descriptor, bytes(min(size - end, 1 << 20)))
