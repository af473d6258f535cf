"""Who asks, and what they may do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from starlette.requests import Request

from longsight.chat.messages import ChatMessage
from longsight.server.errors import forbidden

# chat: generate text in any protocol. files: upload and read files. usage: see what was used and what is left.
# root: send messages of the role `root`. admin: metrics and administration.
SCOPES = ("chat", "files", "usage", "root", "admin")
ALL_SCOPES = frozenset(SCOPES)


@dataclass(frozen=True)
class Caller:
    """key_id: of the API key, never its secret; name: what it was made for; organisation: whose files, limits and bills
    they are.

    models: patterns (shell style) of the model names that may be asked. rpm, tpm, concurrency: where the key has limits
    of its own instead of the server's.
    """

    key_id: str
    organisation: str
    scopes: frozenset[str] = ALL_SCOPES
    models: tuple[str, ...] = ("*",)
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    name: str = ""


ANONYMOUS = Caller("anonymous", "anonymous")


def caller_of(request: Request) -> Caller:
    """Who an authentication middleware found behind the request; ANONYMOUS where there is none."""
    found = request.scope.get("state", {}).get("caller")
    return found if isinstance(found, Caller) else ANONYMOUS


def require_scope(caller: Caller, scope: str) -> None:
    """Raises ApiError 403 if the caller's key does not have the scope."""
    if scope not in caller.scopes:
        has = ", ".join(s for s in SCOPES if s in caller.scopes) or "none"
        raise forbidden(f"this needs the scope {scope!r}; the API key {caller.key_id} has {has}", "missing_scope")


def require_model(caller: Caller, *names: str) -> None:
    """names: all that the model goes by. Raises ApiError 403 if the caller's key is for none of them."""
    if not any(fnmatchcase(name, pattern) for name in names for pattern in caller.models):
        allowed = ", ".join(map(repr, caller.models)) or "none"
        message = f"the API key {caller.key_id} is not for the model {names[0]!r}; it is for {allowed}"
        raise forbidden(message, "model_not_allowed", "model")


def require_root_scope(caller: Caller, messages: Iterable[ChatMessage]) -> None:
    """Raises ApiError 403 for a message of the role root, which outranks the server's own, without the scope for it."""
    if any(message.role == "root" for message in messages):
        require_scope(caller, "root")
