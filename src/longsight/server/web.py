"""The web page: static files of the package under /web/, the page itself at / for whoever asks for HTML.

`web/` is ours; `vendor/` holds other people's libraries, which scripts/vendor_web.py copies there.
"""

from __future__ import annotations

import mimetypes
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longsight import __version__

FILES = Path(__file__).parent / "web"
VENDOR = Path(__file__).parent / "vendor"
for _ending, _type in ((".js", "text/javascript"), (".mjs", "text/javascript"), (".woff2", "font/woff2")):
    mimetypes.add_type(_type, _ending)  # whatever the system's own table says: with nosniff a wrong type is an error
# The page loads nothing from elsewhere and is shown in nobody's frame. no-cache: a browser asks whether a file changed.
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; object-src 'none'; frame-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def routes() -> list[BaseRoute]:
    headers = [Middleware(PageHeaders)]
    return [
        Route("/", root),
        Mount("/web/vendor", StaticFiles(directory=VENDOR), middleware=headers),
        Mount("/web", StaticFiles(directory=FILES), middleware=headers),
    ]


async def root(request: Request) -> Response:
    """The page for browsers, name and version for programs."""
    if "text/html" in request.headers.get("accept", ""):
        return FileResponse(FILES / "index.html", headers={**HEADERS, "vary": "accept"})
    return JSONResponse({"name": "longsight", "version": __version__}, headers={"vary": "accept"})


class PageHeaders:
    """Adds the page's headers to its files."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers)
