"""An upload's form, from the socket to the file store: about a megabyte of it is in memory at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

from anyio import CancelScope, to_thread
from starlette.requests import ClientDisconnect, Request

from longsight.server.body import DRAIN_BYTES, ClientGoneError
from longsight.server.errors import ApiError, invalid
from longsight.server.file_errors import FileTooLargeError
from longsight.server.file_index import StoredFile
from longsight.server.file_store import FileStore, Upload
from longsight.server.multipart import Part, Piece, read_form

WRITE_BYTES = 2**20
FORM_BYTES = 2**20  # what the form may take beside the file
FIELD_BYTES = 1024
FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
SHORTEST, LONGEST = 3600, 30 * 24 * 3600  # seconds, of the protocol


async def receive(request: Request, store: FileStore, owner: str) -> StoredFile:
    """Store the part `file` of the request's form. Raises ApiError, FileStoreError, or ClientGoneError."""
    upload = await to_thread.run_sync(store.begin, owner)
    stream = request.stream()
    try:
        chunks = _counted(stream, request, store.limits.bytes_for(None) + FORM_BYTES)
        filename, fields = await _fill(read_form(chunks, request.headers.get("content-type", "")), upload)
        expires_after = _expires_after(fields)
        return await to_thread.run_sync(upload.finish, filename, expires_after)
    except ClientDisconnect as error:
        raise ClientGoneError from error
    except ApiError:
        await drain(stream)
        raise
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(upload.abort)


async def _fill(form: AsyncIterator[Piece], upload: Upload) -> tuple[str, dict[str, str]]:
    """Write the file; its name and the form's other fields."""
    file: Part | None = None
    fields: dict[str, bytes] = {}
    buffer = bytearray()
    purpose_part: Part | None = None
    async for part, data in form:
        # The parts before this one are complete.
        if purpose_part is not None and part is not purpose_part:
            upload.set_purpose(_text(fields, "purpose"))
            purpose_part = None
        if part.name == "file":
            if part is not file and file is not None:
                raise invalid("the form has more than one part named file; upload one file at a time", "file")
            file = part
            buffer += data
            if len(buffer) >= WRITE_BYTES:
                await to_thread.run_sync(upload.write, bytes(buffer))
                buffer.clear()
        elif part.name in FIELDS:
            purpose_part = part if part.name == "purpose" else purpose_part
            fields[part.name] = fields.get(part.name, b"") + data
            if len(fields[part.name]) > FIELD_BYTES:
                raise invalid(f"{part.name} is longer than {FIELD_BYTES} bytes", part.name)
    if purpose_part is not None:
        upload.set_purpose(_text(fields, "purpose"))
    if file is None:
        raise invalid("file is missing; send it as a part of a multipart form named file", "file")
    await to_thread.run_sync(upload.write, bytes(buffer))
    return file.filename or "file", {name: _text(fields, name) for name in fields}


async def _counted(stream: AsyncIterator[bytes], request: Request, limit: int) -> AsyncIterator[bytes]:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise FileTooLargeError(None, limit - FORM_BYTES)
    received = 0
    async for chunk in stream:
        received += len(chunk)
        if received > limit:
            raise FileTooLargeError(None, limit - FORM_BYTES)
        yield chunk


async def drain(stream: AsyncIterator[bytes]) -> None:
    """Read what a refused client still sends, within bounds: else many report a broken connection, not the refusal."""
    received = 0
    with suppress(ClientDisconnect):
        async for chunk in stream:
            received += len(chunk)
            if received > DRAIN_BYTES:
                return


def _expires_after(fields: dict[str, str]) -> int | None:
    seconds, anchor = fields.get("expires_after[seconds]"), fields.get("expires_after[anchor]", "created_at")
    if seconds is None:
        return None
    if anchor != "created_at":
        raise invalid(f"expires_after[anchor] is {anchor!r}; created_at is accepted", "expires_after")
    if not (seconds.isascii() and seconds.isdecimal() and SHORTEST <= int(seconds) <= LONGEST):
        raise invalid(
            f"expires_after[seconds] is {seconds!r}; whole numbers from {SHORTEST} to {LONGEST} are accepted",
            "expires_after",
        )
    return int(seconds)


def _text(fields: dict[str, bytes], name: str) -> str:
    return fields[name].decode("utf-8", errors="replace")
