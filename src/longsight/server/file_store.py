"""Uploaded files in a directory: content beside an index, and after a crash a whole file or none.

    content/ID       a file's bytes, complete and synced before its row is written
    incoming/NAME    an upload under way
    index.sqlite     what is known of each file (file_index.py)

Content without a row, and whatever is left of uploads, is removed when the store is next opened.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from sqlalchemy.exc import SQLAlchemyError

from longsight.locked import lock_directory
from longsight.server.file_errors import (
    FileMissingError,
    FilePurposeError,
    FileReferenceError,
    FileStoreError,
    FileTooLargeError,
    FileTypeError,
)
from longsight.server.file_index import FileIndex, StoredFile
from longsight.server.sniff import HEAD_BYTES, IMAGE_TYPES, VIDEO_TYPES, media_type, spoken

log = logging.getLogger("longsight")
MB = 2**20
DAY = 24 * 60 * 60
ID_LIMIT = 2**53  # ids pass through JSON readers that hold numbers as doubles
VIDEO = "video_understanding"
TYPES = {"image": IMAGE_TYPES, "vision": IMAGE_TYPES, VIDEO: VIDEO_TYPES}
SWEEP_SECONDS = 60.0
NAME_LENGTH = 255


@dataclass(frozen=True)
class FileLimits:
    """Bytes a file may have, by purpose, and seconds it is kept (None: until it is deleted).

    image: purposes image and vision. video: video_understanding.
    """

    image_bytes: int = 10 * MB
    video_bytes: int = 512 * MB
    other_bytes: int = 512 * MB
    video_seconds: int | None = 7 * DAY
    other_seconds: int | None = None

    def bytes_for(self, purpose: str | None) -> int:
        """The limit of a purpose; the largest there is while the purpose is not known."""
        if purpose is None:
            return max(self.image_bytes, self.video_bytes, self.other_bytes)
        if purpose == VIDEO:
            return self.video_bytes
        return self.image_bytes if purpose in TYPES else self.other_bytes

    def seconds_for(self, purpose: str) -> int | None:
        return self.video_seconds if purpose == VIDEO else self.other_seconds


def as_file_id(value: object) -> int:
    """The id in a client's words: 123, "123" or "file-123". Raises FileMissingError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < ID_LIMIT:
        return value
    match = re.fullmatch(r"(?:file-)?([0-9]{1,16})", value) if isinstance(value, str) else None
    if match is None or int(match[1]) >= ID_LIMIT:
        raise FileMissingError(value)
    return int(match[1])


def file_id_of(url: str) -> int:
    """The id in mm_file://ID. Raises FileReferenceError."""
    scheme, separator, rest = url.partition("://")
    if scheme.lower() != "mm_file" or not separator:
        raise FileReferenceError(url)
    try:
        return as_file_id(rest)
    except FileMissingError as error:
        raise FileReferenceError(url) from error


class FileStore:
    """Files of many owners. Safe to call from several threads; calls block on the disk."""

    def __init__(
        self, directory: Path, limits: FileLimits | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Takes the directory for this process alone. Raises FileStoreError if it cannot."""
        self.limits = limits or FileLimits()
        self.clock = clock
        self._lock = _take(directory)
        self.content, self.incoming = directory / "content", directory / "incoming"
        try:
            self.content.mkdir(exist_ok=True)
            self.incoming.mkdir(exist_ok=True)
            self.index = FileIndex(directory / "index.sqlite")
            self._recover()
        except (OSError, SQLAlchemyError) as error:
            self._lock.close()
            raise FileStoreError(f"the files directory {directory} cannot be used: {error}") from error
        self._closed = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep_until_closed, name="longsight-files", daemon=True)
        self._sweeper.start()

    def close(self) -> None:
        self._closed.set()
        self._sweeper.join()
        self.index.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def begin(self, owner: str) -> Upload:
        return Upload(self, owner)

    def get(self, owner: str, file_id: int) -> StoredFile:
        file = self.index.get(owner, file_id, self.clock())
        if file is None:
            raise FileMissingError(file_id)
        return file

    def list(
        self,
        owner: str,
        *,
        purpose: str | None = None,
        after: int | None = None,
        limit: int | None = None,
        newest_first: bool = True,
    ) -> Sequence[StoredFile]:
        """Raises FileMissingError if `after` is none of the owner's files."""
        files = self.index.list(
            owner, self.clock(), purpose=purpose, after=after, limit=limit, newest_first=newest_first
        )
        if files is None:
            raise FileMissingError(after)
        return files

    def open_content(self, owner: str, file_id: int, purpose: str | None = None) -> tuple[StoredFile, BinaryIO]:
        """A file and its bytes, which stay readable if it is deleted meanwhile; the caller closes them.

        Raises FileMissingError, and FilePurposeError if it was uploaded for another purpose than `purpose`.
        """
        file = self.get(owner, file_id)
        if purpose is not None and file.purpose != purpose:
            raise FilePurposeError(f"the file {file_id} was uploaded for {file.purpose!r}; {purpose!r} is due here")
        try:
            return file, (self.content / str(file_id)).open("rb")
        except FileNotFoundError as error:  # deleted since the line above
            raise FileMissingError(file_id) from error

    def delete(self, owner: str, file_id: int) -> None:
        """Raises FileMissingError."""
        if not self.index.remove(owner, file_id, self.clock()):
            raise FileMissingError(file_id)
        self.unlink(file_id)

    def sweep(self) -> None:
        """Remove the files whose time is over."""
        for file_id in self.index.remove_expired(self.clock()):
            self.unlink(file_id)

    def _sweep_until_closed(self) -> None:
        while not self._closed.wait(SWEEP_SECONDS):
            try:
                self.sweep()
            except Exception:
                log.exception("expired files could not be removed; trying again in %g s", SWEEP_SECONDS)

    def _recover(self) -> None:
        self.sweep()
        for path in self.incoming.iterdir():
            path.unlink()
        sizes = self.index.sizes()
        for path in self.content.iterdir():
            if not path.name.isdecimal() or int(path.name) not in sizes:
                path.unlink()
        for file_id, size in sizes.items():
            path = self.content / str(file_id)
            if not path.exists() or path.stat().st_size != size:
                log.warning("the content of file %d is gone or was changed; the file is dropped", file_id)
                self.index.forget(file_id)
                self.unlink(file_id)

    def unlink(self, file_id: int) -> None:
        """Remove content that no row speaks of."""
        (self.content / str(file_id)).unlink(missing_ok=True)


class Upload:
    """A file on its way in: write() any number of times, then finish() or abort(). One thread at a time."""

    def __init__(self, store: FileStore, owner: str) -> None:
        self.store, self.owner = store, owner
        self.purpose: str | None = None
        self.size = 0
        self._head = b""
        self._path = store.incoming / secrets.token_hex(16)
        self._file = self._path.open("xb")

    def set_purpose(self, purpose: str) -> None:
        """Known early, it refuses early. Raises FilePurposeError, and FileTooLargeError for what came before it."""
        # The hosted service's own pages disagree on the list of purposes, so any word is one.
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", purpose):
            raise FilePurposeError(
                f"the purpose {purpose[:80]!r} is not a word of letters, digits, _ and -, such as {VIDEO!r}"
            )
        self.purpose = purpose
        self._check()

    def write(self, data: bytes) -> None:
        """Raises FileTooLargeError before a byte too many is written, FileTypeError as soon as the bytes tell."""
        if len(self._head) < HEAD_BYTES:
            self._head += data[: HEAD_BYTES - len(self._head)]
        self.size += len(data)
        self._check()
        try:
            self._file.write(data)
        except OSError as error:
            raise _disk(error) from error

    def finish(self, filename: str, expires_after: int | None = None) -> StoredFile:
        """Keep it, for `expires_after` seconds or as long as files of its purpose are kept, whichever is shorter."""
        if self.purpose is None:
            raise FilePurposeError(f"purpose is missing; it is required, such as {VIDEO!r}")
        store, now = self.store, int(self.store.clock())
        self._check(complete=True)
        times = [s for s in (expires_after, store.limits.seconds_for(self.purpose)) if s is not None]
        kind = media_type(self._head) or "application/octet-stream"
        expires_at = now + min(times) if times else None
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            new = self._place()
        except OSError as error:
            raise _disk(error) from error
        file = StoredFile(new, self.owner, self.purpose, _plain_name(filename), self.size, kind, now, expires_at)
        try:
            _sync_directory(store.content)
            store.index.add(file)
        except (OSError, SQLAlchemyError) as error:
            store.unlink(new)
            raise _disk(error) from error
        return file

    def abort(self) -> None:
        """Drop it; nothing happens after finish()."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _place(self) -> int:
        """Move the content to a new id."""
        while True:
            new = secrets.randbelow(ID_LIMIT - 1) + 1
            # A link fails where a rename would overwrite.
            with suppress(FileExistsError):
                os.link(self._path, self.store.content / str(new))
                self._path.unlink()
                return new

    def _check(self, complete: bool = False) -> None:
        limits = self.store.limits
        if self.size > limits.bytes_for(self.purpose):
            raise FileTooLargeError(self.purpose, limits.bytes_for(self.purpose))
        wanted = TYPES.get(self.purpose) if self.purpose else None
        if wanted is None or not (complete or len(self._head) >= HEAD_BYTES):
            return
        kind = media_type(self._head)
        if kind not in wanted:
            what = f"bytes are {spoken(frozenset([kind]))}" if kind else f"first bytes are {self._head[:12]!r}"
            raise FileTypeError(f"the file's {what}; {self.purpose!r} takes {spoken(wanted)}")


def _take(directory: Path) -> BinaryIO:
    try:
        return lock_directory(directory, mode=0o700)
    except BlockingIOError as error:
        raise FileStoreError(
            f"the files directory {directory} is in use by another process; give each its own"
        ) from error
    except OSError as error:
        raise FileStoreError(f"the files directory {directory} cannot be used: {error.strerror}") from error


def _disk(error: Exception) -> FileStoreError:
    log.error("the file store cannot write", exc_info=error)
    reason = error.strerror if isinstance(error, OSError) else type(error).__name__
    return FileStoreError(f"the file cannot be stored: {reason}")


def _sync_directory(path: Path) -> None:
    if os.name == "nt":  # directories cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain_name(filename: str) -> str:
    """The last part of a path, without control characters; a name is shown to people and never opened."""
    name = re.split(r"[/\\]", filename)[-1]
    return "".join(c for c in name if c.isprintable())[:NAME_LENGTH] or "file"
