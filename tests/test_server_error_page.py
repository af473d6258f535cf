"""What a browser sees that opens an address of the API, beside what programs get there."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from live_server import LiveServer, live_server
from longsight.server.auth import StaticKey

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(root_path="/ai") as server:
        yield server


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1", 404, "base URL for OpenAI"),
        ("/v1/", 404, "base URL for OpenAI"),
        ("/anthropic/v1", 404, "base URL ends in /anthropic"),
        ("/v1/chat/completions", 405, "method not allowed"),
        ("/nothing", 404, "no such route"),
        ("/v1/models/nobody", 404, "does not exist"),
    ],
)
def test_a_browser_gets_a_page_and_a_program_json(server: LiveServer, path: str, status: int, words: str) -> None:
    page = httpx.get(f"{server.url}/ai{path}", headers=BROWSER)
    assert page.status_code == status
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["vary"] == "accept"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert words in page.text
    for link in ('href="/ai/"', 'href="/ai/openapi.json"', "<code>/ai/v1</code>", "<code>/ai/anthropic</code>"):
        assert link in page.text
    for accept in ("*/*", "application/json"):
        told = httpx.get(f"{server.url}/ai{path}", headers={"accept": accept})
        assert told.headers["content-type"] == "application/json"
        assert {"error", "base_resp"} & told.json().keys()


def test_programs_keep_their_dialect_even_if_they_take_anything(server: LiveServer) -> None:
    refused = httpx.post(f"{server.url}/anthropic/v1/messages", json={}, headers=BROWSER)
    assert refused.json()["type"] == "error"


def test_what_a_path_says_is_text(server: LiveServer) -> None:
    page = httpx.get(f"{server.url}/<script>alert(1)</script>", headers=BROWSER).text
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_server_with_keys_speaks_of_settings() -> None:
    with live_server(authenticator=StaticKey("secret")) as server:
        page = httpx.get(f"{server.url}/v1", headers=BROWSER)
        assert page.status_code == 401
        assert "Settings" in page.text
        assert "Bearer" not in page.text
        told = httpx.get(f"{server.url}/v1")
        assert told.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{server.url}/", headers=BROWSER).status_code == 200
