"""Content blocks of the Messages protocol as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longsight.server.errors import ApiError, invalid, show

MEDIA = ("image", "video", "audio")
# What services of other providers put into a conversation: nothing that this model ran, said or can read.
FOREIGN = ("server_tool_use", "mcp_tool_use", "redacted_thinking", "container_upload", "compaction", "fallback")


def block_of(given: Any, path: str) -> Mapping[str, Any]:
    """One block. Raises ApiError 400 for what has no type, and for what a text model cannot read."""
    if not isinstance(given, dict) or not isinstance(given.get("type"), str):
        raise invalid(f"{path} is {show(given)}; it must be a content block, an object with a type", path)
    if given["type"] in MEDIA:
        raise no_media(path, given["type"])
    return given


def no_media(path: str, kind: str) -> ApiError:
    message = f"{path} is of type {kind}; the model on this server reads text only"
    return invalid(message, path, "unsupported_media")


def unknown(block: Mapping[str, Any], path: str, accepted: str) -> ApiError:
    return invalid(f"{path} is of type {show(block['type'])}; here can stand {accepted}", path)


def is_foreign(block: Mapping[str, Any]) -> bool:
    kind: str = block["type"]
    return kind in FOREIGN or (kind.endswith("_tool_result") and kind != "tool_result")


def string(block: Mapping[str, Any], key: str, path: str) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        raise invalid(f"{path}.{key} is {show(value)}; it must be a string", f"{path}.{key}")
    return value


def text_of(content: Any, path: str, between: str = "") -> str:
    """A string, or text blocks joined. Raises ApiError 400 for anything else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"{path} is {show(content)}; it must be a string or a list of text blocks", path)
    texts = [plain(block_of(block, f"{path}.{i}"), f"{path}.{i}") for i, block in enumerate(content)]
    return between.join(text for text in texts if text)


def plain(block: Mapping[str, Any], path: str) -> str:
    """The text of a block that is only to be read."""
    match block["type"]:
        case "text":
            return string(block, "text", path)
        case "mid_conv_system":
            return text_of(block.get("content", block.get("text")), f"{path}.content")
        case "tool_reference":
            return string(block, "tool_name", path)
        case "search_result":
            return f"{string(block, 'title', path)}\n{text_of(block.get('content'), f'{path}.content')}\n"
        case "document":
            return _document(block, path)
    raise unknown(block, path, "text")


def _document(block: Mapping[str, Any], path: str) -> str:
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    if isinstance(source, dict) and kind == "text":
        return string(source, "data", f"{path}.source")
    if isinstance(source, dict) and kind == "content":
        return text_of(source.get("content"), f"{path}.source.content")
    raise no_media(path, f"document with a source of type {show(kind)}")
