"""What the server writes down: enough to operate it, and nothing of what was said."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fake_model import FakeModel
from live_server import live_server, wait_for
from longsight.server import logs
from longsight.server.keys import KeyStore, NewKey
from longsight.server.stored_keys import StoredKeys

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"  # RFC 3339
SENTINEL = "ShibbolethOfEphraim"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What `configure` makes of the log lines, which a test may reconfigure; afterwards all is as before."""
    root, ours = logging.getLogger(), logging.getLogger("longsight")
    before = root.handlers[:], root.level, ours.level
    captured = io.StringIO()
    yield captured
    root.handlers[:], root.level, ours.level = before


def configure(lines: io.StringIO, form: logs.Format, level: str) -> None:
    logs.configure(form, level, lines)


def entries(lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "x1y2" * 20, "temperature": 0, "max_tokens": 4, **fields}


def test_one_json_line_per_request(lines: io.StringIO) -> None:
    configure(lines, "json", "info")
    with live_server(sinks=[logs.AccessLog()]) as server, httpx.Client(base_url=server.url) as http:
        answer = http.post("/v1/completions", json=body(), headers={"x-stainless-retry-count": "1"})
        http.get("/health")
        http.get("/v1/nothing")
        wait_for(lambda: len(entries(lines)) == 2)
    first, second = entries(lines)
    assert {k: v for k, v in first.items() if k not in ("time", "duration_s", "ttft_s", "cached_tokens")} == {
        "level": "info",
        "logger": "longsight.access",
        "message": "request",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "request_id": answer.headers["x-request-id"],
        "client": "127.0.0.1",
        "key": "anonymous",
        "retry": 1,
        "model": "tiny",
        "dialect": first["dialect"],
        "outcome": "ok",
        "finish_reason": "length",
        "prompt_tokens": 80,
        "completion_tokens": 4,
        "reasoning_tokens": 0,
    }
    assert first["duration_s"] >= first["ttft_s"] > 0
    assert first["time"].endswith("Z")
    assert (second["method"], second["path"], second["status"]) == ("GET", "unmatched", 404)


def test_text_lines(lines: io.StringIO) -> None:
    configure(lines, "text", "debug")
    with live_server(sinks=[logs.AccessLog()]) as server:
        httpx.post(f"{server.url}/v1/completions", json=body())
        httpx.get(f"{server.url}/health")
        wait_for(lambda: lines.getvalue().count("request_id=") == 2)
    first, second = [line for line in lines.getvalue().splitlines() if "request_id=" in line]
    begins = "longsight: INFO: request method=POST path=/v1/completions status=200 request_id=req_"
    assert re.match(f"{TIME} {begins}", first)
    assert " client=127.0.0.1 key=anonymous " in first
    assert " completion_tokens=4 " in first
    assert re.match(f"{TIME} longsight: DEBUG: request method=GET path=/health status=200", second)


def test_warnings_only(lines: io.StringIO) -> None:
    configure(lines, "text", "warning")
    with live_server(sinks=[logs.AccessLog()]) as server:
        httpx.post(f"{server.url}/v1/completions", json=body())
    assert lines.getvalue() == ""


@pytest.mark.parametrize("form", logs.FORMATS)
def test_no_word_of_a_request_is_written_down(lines: io.StringIO, form: logs.Format) -> None:
    """Answered, streamed, refused in every way, failed in the engine and by a defect: at debug level."""
    configure(lines, form, "debug")

    def fails(tokens: list[int]) -> None:
        if SENTINEL.encode() in bytes(t for t in tokens if t < 250) and failing:
            raise ValueError(f"cannot compute {bytes(tokens)!r}")

    failing = False
    headers = {"authorization": f"Bearer {SENTINEL}", "x-api-key": SENTINEL, "cookie": SENTINEL, SENTINEL: SENTINEL}
    headers |= {"x-forwarded-for": SENTINEL, "forwarded": f'for="{SENTINEL}"', "x-forwarded-proto": SENTINEL}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": f'{{"a": "{SENTINEL}"}}'}}
    chat = {"model": "tiny", "messages": [{"role": "user", "content": SENTINEL}], "max_tokens": 3}
    with (
        live_server(FakeModel(before=fails), sinks=[logs.AccessLog()]) as server,
        httpx.Client(base_url=server.url, headers=headers, timeout=30) as http,
    ):
        posts: list[tuple[str, Any, set[int]]] = [
            ("completions", body(prompt=SENTINEL), {200}),
            ("completions", body(prompt=SENTINEL, stream=True), {200}),
            ("completions", body(prompt={SENTINEL: 1}), {400}),
            ("completions", body(model=SENTINEL), {404}),
            ("completions", body(stop=[SENTINEL, 7]), {400}),
            ("completions", body(logit_bias={SENTINEL: 1}), {400}),
            ("chat/completions", chat, {200}),
            ("chat/completions", {**chat, "messages": [{"role": SENTINEL, "content": ""}]}, {400}),
            (
                "chat/completions",
                {**chat, "messages": [*chat["messages"], {"role": "assistant", "tool_calls": [call]}]},
                {200, 400},
            ),
            ("chat/completions", {**chat, "response_format": {"type": SENTINEL}}, {400}),
        ]
        for path, json_body, statuses in posts:
            assert http.post(f"/v1/{path}", json=json_body).status_code in statuses, (path, json_body, lines.getvalue())
        assert http.post(f"/v1/{SENTINEL}?key={SENTINEL}").status_code == 404
        assert http.post("/v1/completions", content=SENTINEL).status_code == 400
        failing = True
        assert http.post("/v1/completions", json=body(prompt=f"new {SENTINEL}")).status_code == 500
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(server.service), "check_model", _defect)
            assert http.post("/v1/completions", json=body(prompt=SENTINEL)).status_code == 500
        wait_for(lambda: lines.getvalue().count("req_") >= len(posts) + 4)
    written = lines.getvalue()
    assert SENTINEL not in written
    assert "Traceback" in written
    assert "_defect" in written
    assert "KeyError: (message withheld" in written


def _defect(service: object, model: str) -> None:
    raise KeyError(SENTINEL)


def test_messages_that_tell_of_the_machine_are_kept(lines: io.StringIO) -> None:
    configure(lines, "json", "info")
    try:
        try:
            raise ValueError(SENTINEL)
        except ValueError as error:
            raise OSError("the disk is full") from error
    except OSError:
        logging.getLogger("longsight").exception("a page could not be written")
    (entry,) = entries(lines)
    assert entry["message"] == "a page could not be written"
    assert entry["traceback"].endswith("OSError: the disk is full")
    assert "ValueError: (message withheld" in entry["traceback"]
    assert SENTINEL not in entry["traceback"]


@pytest.mark.parametrize("form", logs.FORMATS)
def test_a_known_key_is_named_whatever_became_of_its_request(
    lines: io.StringIO, form: logs.Format, tmp_path: Path
) -> None:
    """Refused by the path's scope, by the model, disabled and expired: each line says whose key it was."""
    store = KeyStore(str(tmp_path / "keys.db"), create=True)
    made = {
        name: store.create(NewKey(name, **options))
        for name, options in {
            "the reader": {"scopes": ("files",)},
            "other model": {"models": ("else",)},
            "disabled": {},
            "expired": {"expires": 1},
        }.items()
    }
    store.disable(made["disabled"][0].id)
    configure(lines, form, "info")
    with live_server(sinks=[logs.AccessLog()], authenticator=StoredKeys(store)) as server:
        statuses = [
            httpx.post(f"{server.url}/v1/completions", json=body(), headers={"x-api-key": secret}).status_code
            for _, secret in made.values()
        ]
        assert statuses == [403, 403, 401, 401]
        assert httpx.post(f"{server.url}/v1/completions", headers={"x-api-key": "nobody's"}).status_code == 401
        wait_for(lambda: lines.getvalue().count("req_") == 5)
    written = lines.getvalue().splitlines()
    for line, (name, (key, secret)) in zip(written, made.items(), strict=False):
        if form == "json":
            assert (json.loads(line)["key"], json.loads(line)["key_name"]) == (key.id, name)
        else:
            assert f" key={key.id} " in line
            assert f" key_name={json.dumps(name) if ' ' in name else name}" in line
        assert secret.rpartition("_")[2] not in line
    assert "anonymous" in written[4]
    assert "key_name" not in written[4]
    store.close()
