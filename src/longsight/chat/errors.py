"""What a conversation can have wrong with it."""

from __future__ import annotations

from longsight.ops import LongsightError


class ChatError(LongsightError, ValueError):
    """A conversation that cannot be rendered. path: where in the request, as in messages.2.content."""

    def __init__(self, message: str, path: str = "messages") -> None:
        super().__init__(message)
        self.path = path


class ChatTemplateError(LongsightError, ValueError):
    """The checkpoint's chat template cannot be read or compiled."""
