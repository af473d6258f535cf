"""multipart/form-data as it arrives: parts are handed on in pieces, so an upload of any size takes little memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from longsight.server.errors import invalid

MAX_PARTS = 32


@dataclass(eq=False)
class Part:
    """One part of a form. `filename` is None for a plain field."""

    name: str
    filename: str | None


Piece = tuple[Part, bytes]


class _Pieces:
    """The parser's callbacks, gathered into pieces."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.ended = False
        self._parts = 0
        self._field, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._part: Part | None = None

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise invalid(f"the form has more than {MAX_PARTS} parts")
        self._headers = {}

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field, self._value = b"", b""

    def on_headers_finished(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"").decode("latin-1")
        kind, options = parse_options_header(disposition)
        if kind != b"form-data" or b"name" not in options:
            raise invalid(
                f"a part of the form has the Content-Disposition {disposition!r}; form-data with a name is due"
            )
        filename = options.get(b"filename")
        self._part = Part(_text(options[b"name"]), None if filename is None else _text(filename))
        # An empty part has no data callback, and exists all the same.
        self.pieces.append((self._part, b""))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        assert self._part is not None
        self.pieces.append((self._part, data[start:end]))

    def on_end(self) -> None:
        self.ended = True


async def read_form(chunks: AsyncIterator[bytes], content_type: str) -> AsyncIterator[Piece]:
    """The form's parts in order, each as one empty piece and then its data in pieces of a chunk at most.

    Raises ApiError 400 if it is no multipart form, malformed, or ends early.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise invalid(f"the Content-Type is {content_type!r}; multipart/form-data with a boundary is due")
    form = _Pieces()
    callbacks = {name: getattr(form, name) for name in dir(form) if name.startswith("on_")}
    try:
        parser = MultipartParser(options[b"boundary"], callbacks)  # type: ignore[arg-type]
        async for chunk in chunks:
            parser.write(chunk)
            pieces, form.pieces = form.pieces, []
            for piece in pieces:
                yield piece
    except FormParserError as error:
        raise invalid(f"the multipart form is malformed: {error}") from error
    if not form.ended:
        raise invalid("the multipart form ends before its closing boundary")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")
