"""The Files API, twice over one store: in OpenAI's shapes, and in MiniMax's.

What is MiniMax's is named native; its errors are HTTP 200 with a base_resp.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from longsight.server.body import ClientGoneError, read_text
from longsight.server.errors import ApiError, as_api_error, invalid
from longsight.server.file_errors import FileMissingError
from longsight.server.file_index import StoredFile
from longsight.server.file_store import FileStore, as_file_id
from longsight.server.identity import caller_of, require_scope
from longsight.server.upload import drain, receive

if TYPE_CHECKING:
    from longsight.server.service import Service

SCOPE = "files"
READ_BYTES = 2**20
MAX_LIST = 10_000
DELETE_BODY = 2**16
# The native protocol's codes; a client's mistake is 2013 unless said otherwise.
NATIVE_CODES = {401: 1004, 402: 1008, 403: 2061, 429: 1002, 500: 1000, 503: 1033, 504: 1001}
INVALID_PARAMETERS = 2013

Handler = Callable[[Request], Awaitable[Response]]


def store_of(request: Request) -> tuple[FileStore, str]:
    """The server's file store, and the owner on whose behalf it is asked."""
    caller = caller_of(request)
    require_scope(caller, SCOPE)
    service: Service = request.app.state.service
    if service.files is None:
        raise ApiError(404, "this server keeps no files", type="invalid_request_error", code="unavailable")
    return service.files, caller.organisation


async def create(request: Request) -> Response:
    """Store a file: a multipart form with purpose and file."""
    return JSONResponse(_openai(await _receive(request)))


async def index(request: Request) -> Response:
    """The caller's files in pages: after, limit, order, purpose."""
    store, owner = store_of(request)
    query = request.query_params
    order, limit, after = query.get("order", "desc"), query.get("limit", str(MAX_LIST)), query.get("after")
    if order not in ("asc", "desc"):
        raise invalid(f"order is {order!r}; asc and desc are accepted", "order")
    if not (re.fullmatch(r"[0-9]{1,5}", limit) and 1 <= int(limit) <= MAX_LIST):
        raise invalid(f"limit is {limit!r}; whole numbers from 1 to {MAX_LIST} are accepted", "limit")

    def page() -> list[StoredFile]:
        try:
            # One more than asked for tells whether there are more.
            return list(
                store.list(
                    owner,
                    purpose=query.get("purpose"),
                    after=None if after is None else as_file_id(after),
                    limit=int(limit) + 1,
                    newest_first=order == "desc",
                )
            )
        except FileMissingError as error:
            raise invalid(f"after is {after!r}; the id of a file of yours is accepted", "after") from error

    files = await to_thread.run_sync(page)
    data = [_openai(file) for file in files[: int(limit)]]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return JSONResponse({"object": "list", "data": data, **ends, "has_more": len(files) > len(data)})


async def retrieve(request: Request) -> Response:
    """What is known of a file."""
    store, owner = store_of(request)
    return JSONResponse(_openai(await to_thread.run_sync(store.get, owner, as_file_id(request.path_params["id"]))))


async def remove(request: Request) -> Response:
    """Delete a file."""
    store, owner = store_of(request)
    number = as_file_id(request.path_params["id"])
    await to_thread.run_sync(store.delete, owner, number)
    return JSONResponse({"id": f"file-{number}", "object": "file", "deleted": True})


async def content(request: Request) -> Response:
    """A file's bytes."""
    return await _content(request, request.path_params["id"])


def _openai(file: StoredFile) -> dict[str, Any]:
    return {
        "id": f"file-{file.id}",
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def native(handler: Handler) -> Handler:
    """Errors become HTTP 200 with a base_resp."""

    @wraps(handler)
    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientGoneError:
            raise
        except Exception as error:
            refusal = as_api_error(error)
            code = NATIVE_CODES.get(refusal.status, INVALID_PARAMETERS)
            retry = refusal.response().headers["x-should-retry"]
            return JSONResponse(_base(code, str(refusal)), headers={"x-should-retry": retry})

    return endpoint


@native
async def native_upload(request: Request) -> Response:
    """Store a file: a multipart form with purpose and file. Errors here and below: 200 with a base_resp."""
    file = await _receive(request)
    return JSONResponse({"file": _native(file), **_base()})


@native
async def native_list(request: Request) -> Response:
    """The caller's files of one purpose."""
    store, owner = store_of(request)
    purpose = _required(request.query_params, "purpose")
    files = await to_thread.run_sync(lambda: store.list(owner, purpose=purpose))
    return JSONResponse({"files": [_native(file) for file in files], **_base()})


@native
async def native_retrieve(request: Request) -> Response:
    """What is known of the file file_id."""
    store, owner = store_of(request)
    file = await to_thread.run_sync(store.get, owner, as_file_id(_required(request.query_params, "file_id")))
    url = request.url_for("native_content").include_query_params(file_id=file.id)
    return JSONResponse({"file": {**_native(file), "download_url": str(url)}, **_base()})


@native
async def native_content(request: Request) -> Response:
    """The bytes of the file file_id."""
    return await _content(request, _required(request.query_params, "file_id"))


@native
async def native_delete(request: Request) -> Response:
    """Delete the file that the JSON body names by file_id."""
    store, owner = store_of(request)
    try:
        body = json.loads(await read_text(request, DELETE_BODY))
    except (ValueError, RecursionError) as error:
        raise invalid(f"the request body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise invalid("the request body is not a JSON object with a file_id")
    # The purpose beside it is not compared: clients name one file's purpose differently in upload and delete.
    number = as_file_id(_required(body, "file_id"))
    await to_thread.run_sync(store.delete, owner, number)
    return JSONResponse({"file_id": number, **_base()})


def _required(fields: Mapping[str, Any], name: str) -> Any:
    if fields.get(name) in (None, ""):
        raise invalid(f"{name} is missing; it is required", name)
    return fields[name]


def _native(file: StoredFile) -> dict[str, Any]:
    return {
        "file_id": file.id,
        "bytes": file.bytes,
        "created_at": file.created_at,
        "filename": file.filename,
        "purpose": file.purpose,
    }


def _base(code: int = 0, message: str = "success") -> dict[str, Any]:
    return {"base_resp": {"status_code": code, "status_msg": message}}


async def _receive(request: Request) -> StoredFile:
    try:
        store, owner = store_of(request)
    except ApiError:
        await drain(request.stream())
        raise
    return await receive(request, store, owner)


async def _content(request: Request, value: object) -> Response:
    store, owner = store_of(request)
    return ContentResponse(*await to_thread.run_sync(store.open_content, owner, as_file_id(value)))


class ContentResponse(StreamingResponse):
    """A file's bytes, which no browser is to take for a page; the file is closed however the answer ends."""

    def __init__(self, stored: StoredFile, file: BinaryIO) -> None:
        self._file = file
        headers = {
            "content-length": str(stored.bytes),
            "content-disposition": f"attachment; filename*=UTF-8''{quote(stored.filename, safe='')}",
            "x-content-type-options": "nosniff",
        }
        super().__init__(self._blocks(), media_type=stored.media_type, headers=headers)

    async def _blocks(self) -> AsyncIterator[bytes]:
        while block := await to_thread.run_sync(self._file.read, READ_BYTES):
            yield block

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


# The native names come first: they would match as ids.
routes = [
    Route("/v1/files/upload", native_upload, methods=["POST"]),
    Route("/v1/files/list", native_list),
    Route("/v1/files/retrieve", native_retrieve),
    Route("/v1/files/retrieve_content", native_content),
    Route("/v1/files/delete", native_delete, methods=["POST"]),
    Route("/v1/files", create, methods=["POST"]),
    Route("/v1/files", index),
    Route("/v1/files/{id}", retrieve),
    Route("/v1/files/{id}", remove, methods=["DELETE"]),
    Route("/v1/files/{id}/content", content),
]
