"""Refusals of the file store, each with the status that the routes answer."""

from __future__ import annotations

from longsight.ops import LongsightError
from longsight.server.errors import ApiError

# By purpose, as the server's options call them (limits.py); other files have file_bytes.
LIMIT_OF = {
    "image": "image_bytes=SIZE",
    "vision": "image_bytes=SIZE",
    "video_understanding": "video_file_bytes=SIZE",
    None: "file_bytes=SIZE, video_file_bytes=SIZE or image_bytes=SIZE, by its purpose",
}


class FileStoreError(LongsightError, OSError):
    """The directory cannot be used, or the disk refuses; the message says why."""


class FileRefusedError(ApiError):
    """Base of what a client did wrong."""

    def __init__(self, message: str, *, status: int = 400, code: str = "invalid_value", param: str = "file") -> None:
        super().__init__(status, message, type="invalid_request_error", code=code, param=param)


class FileMissingError(FileRefusedError):
    """No such file, or one that has expired, or another owner's: the answers are the same."""

    def __init__(self, file_id: object) -> None:
        super().__init__(f"there is no file {file_id!r}", status=404, code="file_not_found", param="file_id")


class FilePurposeError(FileRefusedError):
    """A purpose that is none, or not the one the file was uploaded for."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="purpose")


class FileTooLargeError(FileRefusedError):
    def __init__(self, purpose: str | None, limit: int) -> None:
        what = f"a file for {purpose!r}" if purpose else "a file"
        message = f"the file is larger than {limit} bytes, the limit of {what}"
        remedy = "send less, or start the server with a larger --limit " + LIMIT_OF.get(purpose, "file_bytes=SIZE")
        super().__init__(f"{message}; {remedy}", status=413, code="request_too_large")


class FileTypeError(FileRefusedError):
    """The bytes are of a type that the purpose does not take."""


class FileReferenceError(FileRefusedError):
    """A reference to a file that cannot be read as one."""

    def __init__(self, value: object) -> None:
        super().__init__(f"{value!r} is not a reference to a file; mm_file://FILE_ID is", param="url")
