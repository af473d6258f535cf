"""Errors for people: a browser that opens an address of the API gets a small page instead of JSON."""

from __future__ import annotations

from html import escape
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse
from starlette.types import Scope

from longsight.server.proxy import root_path, route_path
from longsight.server.web import HEADERS

BASE_URLS = {
    "/v1": "This is the base URL for OpenAI's clients. Give it to a program as base_url.",
    "/anthropic/v1": "This is part of the API for Anthropic's clients, whose base URL ends in /anthropic.",
}
PAGE = """\
<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <title>{title} - Longsight</title>
</head>
<body>
<h1>{title}</h1>
<p>{message}</p>
<ul>
  <li><a href="{root}/">The page</a>: chat, and what the model reads{key}</li>
  <li><a href="{root}/openapi.json">The API's description</a> (OpenAPI)</li>
  <li>Base URLs for programs: <code>{root}/v1</code> (OpenAI), <code>{root}/anthropic</code> (Anthropic)</li>
</ul>
</body>
</html>
"""


def wants_page(scope: Scope) -> bool:
    """Whether a browser's address bar asked: it names text/html, which no API client does."""
    return scope["method"] in ("GET", "HEAD") and "text/html" in Headers(scope=scope).get("accept", "")


def error_page(status: int, message: str, scope: Scope) -> HTMLResponse:
    """message: the error's own, which is escaped."""
    base = BASE_URLS.get(route_path(scope).rstrip("/"))
    if status == 401:
        message = "This address needs an API key, which programs send as a header and a browser cannot."
    page = PAGE.format(
        title="An API, not a page" if base else f"{status} {HTTPStatus(status).phrase}",
        message=escape(base or message),
        root=escape(root_path(scope)),
        key="; your API key goes under Settings there" if status in (401, 403) else "",
    )
    return HTMLResponse(page, status, {**HEADERS, "vary": "accept"})
