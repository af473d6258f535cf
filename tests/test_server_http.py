"""Below the client library: bodies, status codes, disconnects, and a loop that stays free."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from fake_model import FakeModel, LookupModel
from live_server import LiveServer, live_server, wait_for

PROMPT = "x1y2z3w4 " * 40  # 360 tokens, six chunks


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 5, **fields}


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    payload = response.json()
    assert set(payload) == {"error"}
    assert set(payload["error"]) == {"message", "type", "param", "code"}
    return dict(payload["error"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"model": "tiny", "prompt": "\xff"}', "not valid UTF-8 at byte 29"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON: recursion limit"),
        (b"[]", "the request body is []: Input should be an object"),
        (b'{"prompt": "x"}', "model is missing; it is required"),
        (b'{"model": "tiny"}', "prompt is missing"),
        (b'{"model": "tiny", "prompt": "x", "temperature": NaN}', "temperature is nan"),
        (b'{"model": "tiny", "prompt": "x", "max_tokens": 1e400}', "max_tokens"),
    ],
)
def test_bodies_that_make_no_sense(http: httpx.Client, content: bytes, words: str) -> None:
    error = error_of(http.post("/v1/completions", content=content), 400)
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]


def test_unknown_routes_and_methods(http: httpx.Client) -> None:
    assert "GET /v1/nothing: no such route" in error_of(http.get("/v1/nothing"), 404)["message"]
    response = http.get("/v1/completions")
    assert "GET /v1/completions: method not allowed" in error_of(response, 405)["message"]
    assert response.headers["allow"] == "POST"


def test_probes(http: httpx.Client) -> None:
    assert http.head("/").status_code == 200
    assert http.get("/").json()["name"] == "longsight"
    health = http.get("/health").json()
    assert health == {
        "status": "ok",
        "model": "tiny",
        "running": 0,
        "waiting": 0,
        "pages_used": 0,
        "pages_total": 64,
    }


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit(chunked: bool) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(80):
            yield b" " * 100_000

    with live_server(body_limit=1_000_000) as server, httpx.Client(base_url=server.url, timeout=30) as http:
        content: Any = pieces() if chunked else b" " * 8_000_000
        error = error_of(http.post("/v1/completions", content=content), 413)
        assert error["code"] == "request_too_large"
        assert "1000000 bytes" in error["message"]
        just_fits = json.dumps(body()).encode().ljust(1_000_000)
        assert http.post("/v1/completions", content=just_fits).status_code == 200
        error_of(http.post("/v1/completions", content=just_fits + b" "), 413)


def test_a_failing_step_is_a_500_and_the_server_lives_on(server: LiveServer, http: httpx.Client) -> None:
    def explode(tokens: list[int]) -> None:
        raise RuntimeError("a defect in a kernel")

    server.model.before = explode
    response = http.post("/v1/completions", json=body())
    error = error_of(response, 500)
    assert error["type"] == "server_error"
    assert "a defect in a kernel" in error["message"]
    assert response.headers["x-should-retry"] == "true"

    frames = http.post("/v1/completions", json=body(stream=True)).text.strip().split("\n\n")
    assert len(frames) == 1, "an error ends a stream, without [DONE]"
    assert "a defect in a kernel" in json.loads(frames[0].removeprefix("data: "))["error"]["message"]
    with server.client() as client, pytest.raises(openai.APIError, match="a defect in a kernel"):
        list(client.completions.create(model="tiny", prompt="x", stream=True))

    server.model.before = None
    assert http.post("/v1/completions", json=body()).json()["choices"][0]["text"] == "x1y2z"
    assert server.engine.pages.used == 0


def test_a_stopped_engine_is_a_503(server: LiveServer, http: httpx.Client) -> None:
    def broken(stats: object) -> None:
        raise RuntimeError("a callback that raises")

    server.engine.on_step = broken
    assert error_of(http.post("/v1/completions", json=body()), 503)["code"] == "unavailable"
    error_of(http.post("/v1/completions", json=body()), 503)
    response = http.get("/health")
    assert response.status_code == 503
    assert response.json()["status"] == "stopped"


def test_an_unforeseen_error_is_a_500_without_its_details(
    server: LiveServer, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(request: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(server.engine, "check", broken)
    error = error_of(http.post("/v1/completions", json=body()), 500)
    assert error["message"] == "internal error: ZeroDivisionError"
    monkeypatch.undo()
    assert http.post("/v1/completions", json=body()).status_code == 200


def test_a_full_queue_is_a_429_with_a_time_to_come_back() -> None:
    model = LookupModel(seconds=0.02)
    with live_server(model, max_running=1, max_queue=2) as server, httpx.Client(base_url=server.url) as http:
        threads = [threading.Thread(target=http.post, args=("/v1/completions",), kwargs={"json": body(max_tokens=30)})]
        threads[0].start()
        wait_for(lambda: http.get("/health").json()["running"] == 1)
        for _ in range(2):
            threads.append(threading.Thread(target=http.post, args=("/v1/completions",), kwargs={"json": body()}))
            threads[-1].start()
        wait_for(lambda: http.get("/health").json()["waiting"] == 2)
        response = http.post("/v1/completions", json=body())
        error = error_of(response, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert response.headers["x-should-retry"] == "true"
        assert 1 <= int(response.headers["retry-after"]) <= 60
        for thread in threads:
            thread.join()


def test_what_does_not_fit_yet_waits_for_pages() -> None:
    with live_server(LookupModel(seconds=0.005), pages=30) as server, server.client() as client:
        # 23 pages each: one at a time.
        answers: list[str] = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(
                    client.completions.create(model="tiny", prompt=PROMPT, max_tokens=5, temperature=0).choices[0].text
                )
            )
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == ["x1y2z"] * 3


def hang_up(server: LiveServer, fields: dict[str, Any]) -> None:
    """Send a request and close the connection without reading the answer."""
    content = json.dumps(fields).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        wait_for(lambda: server.engine.pages.used > 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_request(stream: bool) -> None:
    # 600 tokens at 20 ms each would take 12 s to run out.
    with live_server(LookupModel(seconds=0.02)) as server:
        started = time.monotonic()
        hang_up(server, body(max_tokens=600, stream=stream, ignore_eos=True))
        server.wait_until_idle()
        assert time.monotonic() - started < 6


def test_closing_a_stream_in_the_middle_frees_its_request() -> None:
    with live_server(LookupModel(seconds=0.01)) as server, server.client() as client:
        stream = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=600, temperature=0, stream=True)
        for _, _ in zip(stream, range(3), strict=False):
            assert server.engine.pages.used > 0
        stream.close()
        server.wait_until_idle()


def test_a_quiet_stream_is_kept_alive() -> None:
    with live_server(LookupModel(seconds=0.2), keep_alive=0.02) as server:
        text = httpx.post(f"{server.url}/v1/completions", json=body(max_tokens=1, stream=True), timeout=30).text
    frames = text.split("\n\n")
    assert frames.count(": keep-alive") > 10
    assert "data: [DONE]" in frames


def test_the_http_side_answers_while_a_long_prompt_is_read() -> None:
    model = LookupModel(seconds=0.3)  # asleep, as compiled kernels are for the interpreter
    with live_server(model) as server, httpx.Client(base_url=server.url) as http:
        thread = threading.Thread(target=http.post, args=("/v1/completions",), kwargs={"json": body(), "timeout": 30})
        thread.start()
        wait_for(lambda: server.engine.pages.used > 0)
        latencies = []
        while len(latencies) < 50:
            started = time.monotonic()
            assert http.get("/health").json()["running"] == 1, "the prompt should still be read"
            latencies.append(time.monotonic() - started)
        assert sorted(latencies)[len(latencies) // 2] < 0.1
        thread.join()


def test_answers_do_not_wait_for_acknowledgements(http: httpx.Client) -> None:
    # Head and body are written one after the other; a body that waits for the head's acknowledgement comes 40 ms late.
    seconds = []
    for _ in range(30):
        started = time.monotonic()
        http.get("/health")
        seconds.append(time.monotonic() - started)
    assert sorted(seconds)[15] < 0.02


def test_requests_mixed_at_random_lose_no_page(server: LiveServer) -> None:
    server.model.seconds = 0.002

    def one(i: int) -> None:
        with server.client() as client:
            prompt = PROMPT[i % 9 : 40 * (i % 8 + 1)]
            if i % 3 == 0:
                stream = client.completions.create(model="tiny", prompt=prompt, max_tokens=50, stream=True)
                for _, _ in zip(stream, range(i % 5), strict=False):
                    pass
                stream.close()
            elif i % 3 == 1:
                client.completions.create(model="tiny", prompt=prompt, max_tokens=9, seed=i)
            else:
                with pytest.raises(openai.BadRequestError):
                    client.completions.create(model="tiny", prompt=prompt, max_tokens=10**9)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.wait_until_idle()


def test_an_answer_that_its_client_will_not_wait_for_is_given_up() -> None:
    """The clients say how long they wait: past that, an answer is computed for nobody."""
    with live_server(FakeModel(seconds=0.02)) as server, httpx.Client(base_url=server.url) as http:
        fields = body(prompt="abc", max_tokens=200)
        late = http.post("/v1/completions", json=fields, headers={"x-stainless-timeout": "0.3"})
        assert error_of(late, 504)["code"] == "timeout"
        server.wait_until_idle(3)
        # A stream is never silent for long.
        patient = {"x-stainless-timeout": "0.3"}
        with http.stream("POST", "/v1/completions", json={**fields, "stream": True}, headers=patient) as response:
            lines = [line for line in response.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
