"""What a conversation, or a schema that an answer is to follow, can have wrong with it."""

from __future__ import annotations

import json
from typing import Any

from longsight.ops import LongsightError


class ChatError(LongsightError, ValueError):
    """A conversation that cannot be rendered. path: where in the request, as in messages.2.content. code: what kind of
    fault it is, as the protocols' errors have it."""

    def __init__(self, message: str, path: str = "messages", code: str = "invalid_value") -> None:
        super().__init__(message)
        self.path, self.code = path, code


class ChatTemplateError(LongsightError, ValueError):
    """The checkpoint's chat template cannot be read or compiled."""


class SchemaError(LongsightError, ValueError):
    """A JSON schema that no answer can be held to. pointer: JSON pointer (RFC 6901) of the place in it; tool: whose
    arguments it describes, or None for an answer's own schema."""

    def __init__(self, message: str, pointer: str = "", tool: str | None = None) -> None:
        whole = "the JSON schema" if tool is None else f"the schema of tool {tool!r:.80}"
        super().__init__(f"{pointer + ' of ' if pointer else ''}{whole}: {message}")
        self.pointer, self.tool = pointer, tool


def show(value: Any) -> str:
    """A value as JSON, short enough for one line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def pointer_to(pointer: str, *parts: str | int) -> str:
    """`pointer` and further steps, escaped."""
    return pointer + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)
