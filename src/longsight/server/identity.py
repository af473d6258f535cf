"""Who asks."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from longsight.server.errors import ApiError

ALL_SCOPES = frozenset({"chat", "files", "usage", "root", "admin"})


@dataclass(frozen=True)
class Caller:
    """key_id: of the API key; organisation: whose files, limits and bills they are."""

    key_id: str
    organisation: str
    scopes: frozenset[str] = ALL_SCOPES


ANONYMOUS = Caller("anonymous", "anonymous")


def caller_of(request: Request) -> Caller:
    """Who an authentication middleware found behind the request; ANONYMOUS where there is none."""
    found = request.scope.get("state", {}).get("caller")
    return found if isinstance(found, Caller) else ANONYMOUS


def require_scope(caller: Caller, scope: str) -> None:
    """Raises ApiError 403 if the caller's key does not have the scope."""
    if scope not in caller.scopes:
        raise ApiError(
            403,
            f"this API key does not have the scope {scope!r}; it has {', '.join(sorted(caller.scopes)) or 'none'}",
            type="permission_error",
            code="missing_scope",
        )
