"""The attention microscope over HTTP: what it shows is what the engine did, and it stays within its bounds."""

from __future__ import annotations

import json
import random
import re
import string
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fake_model import EOS, ScriptedModel
from live_server import LiveServer, live_server, wait_for
from longsight.engine import Engine, Request, SamplingParams
from longsight.model import load_model
from longsight.model.needle import NeedlePrompt, hide_needle
from longsight.model.tokenizer import Tokenizer
from longsight.server.errors import ApiError
from longsight.server.gate import Ticket
from longsight.server.identity import ANONYMOUS, Caller
from longsight.server.scope_records import Records
from longsight.server.usage import UsageRecord

DOCS = Path(__file__).parent.parent / "docs" / "web.md"
PATH = "/v1/longsight/microscope"
PROMPT = "x1y2z3w4 " * 40  # 360 tokens, 23 blocks of 16
_RNG = random.Random(5)
WORDS = _RNG.choices(["".join(_RNG.choices(string.ascii_lowercase, k=5)) for _ in range(500)], k=900)


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"].startswith("req_")
    return dict(response.json()["error"])


def events_of(text: str) -> list[Any]:
    frames = [part.removeprefix("data: ") for part in text.strip().split("\n\n") if part.startswith("data: ")]
    return [f if f == "[DONE]" else json.loads(f) for f in frames]


@pytest.fixture(scope="module")
def needle() -> NeedlePrompt:
    return hide_needle(" ".join(WORDS), 5000, 0.4, seed=2)


def test_selections_are_the_engines_own_and_the_needle_is_read(constructed: Path, needle: NeedlePrompt) -> None:
    model, tokenizer = load_model(constructed), Tokenizer.from_dir(constructed)
    direct = Request(tokenizer.encode(needle.text), SamplingParams(max_tokens=9, temperature=0), record_selection=True)
    list(Engine(model, tokenizer, max_model_len=5100).generate(direct))
    wanted = [(s.token_index, s.layer, s.blocks) for s in direct.selections]

    with (
        live_server(model, tokenizer=tokenizer, pages=64, chunk_tokens=2048) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        body = {"prompt": needle.text, "max_tokens": 9, "temperature": 0}
        run = http.post(PATH, json=body).json()
        assert "".join(t["text"] for t in run["tokens"]) == needle.answer
        assert [t["token"] for t in run["tokens"]] == direct.output
        got = [(t["index"], s["layer"], tuple(map(tuple, s["blocks"]))) for t in run["tokens"] for s in t["selections"]]
        assert got == wanted
        assert run["block_size"] == 128
        assert run["prompt_tokens"] == run["usage"]["prompt_tokens"] == 5000

        # The layer that looks for earlier text read the needle's block for every token; not every block was read.
        holding = {needle.needle[0] // 128, needle.needle[1] // 128}
        for token in run["tokens"]:
            (deep,) = token["selections"][-1]["blocks"]
            assert holding & set(deep)
            assert len(deep) == 16
        at = f"{PATH}/{run['id']}/blocks"
        found = http.get(at, params={"ids": ",".join(map(str, sorted(holding)))}).json()["data"]
        assert needle.question + needle.answer in "".join(b["text"] for b in found)
        for block in found:
            assert block["text"] == needle.text[block["start"] : block["end"]]

        (documented,) = re.findall(r"-d '(.*)'", DOCS.read_text())
        answer = http.post(PATH, content=documented).json()
        assert [(t["text"], t["token"]) for t in answer["tokens"]] == [("c", 99), ("a", 97)]

        streamed = events_of(http.post(PATH, json={**body, "stream": True}).text)
        assert streamed[-1] == "[DONE]"
        assert streamed[0]["type"] == "start"
        assert [e for e in streamed[:-1] if e["type"] == "progress"][-1]["processed"] == 5000
        tokens = [{k: v for k, v in e.items() if k != "type"} for e in streamed[:-1] if e["type"] == "token"]
        assert tokens == run["tokens"]
        assert streamed[-2]["finish_reason"] == "length"


def test_messages_and_the_text_of_blocks(http: httpx.Client) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 30, "temperature": 0}
    run = http.post(PATH, json=body).json()
    assert "".join(t["text"] for t in run["tokens"]) == PROMPT[:30]
    # The stand-in reads the block of its own place, in two layers; the second entry is padding and left out.
    assert [t["selections"] for t in run["tokens"]] == [
        [{"layer": layer, "blocks": [[(359 + i) // 16]]} for layer in (1, 2)] for i in range(30)
    ]
    blocks = http.get(f"{PATH}/{run['id']}/blocks?ids=24,0,22").json()["data"]
    whole = PROMPT + PROMPT[:30]
    assert blocks == [
        {"block": b, "start": b * 16, "end": min(b * 16 + 16, 390), "text": whole[b * 16 : b * 16 + 16]}
        for b in (24, 0, 22)
    ]


@pytest.mark.parametrize("ids", ["", "25", "-1", "1,,2", "1.5", "x", "9" * 5000, "²"])
def test_blocks_that_there_are_not(http: httpx.Client, ids: str) -> None:
    run = http.post(PATH, json={"prompt": PROMPT, "max_tokens": 30, "temperature": 0}).json()
    error = error_of(http.get(f"{PATH}/{run['id']}/blocks", params={"ids": ids}), 400)
    assert "blocks 0 to 24" in error["message"]
    assert error["param"] == "ids"


def test_how_many_blocks_and_whose(http: httpx.Client) -> None:
    run = http.post(PATH, json={"prompt": PROMPT, "max_tokens": 1, "temperature": 0}).json()
    at = f"{PATH}/{run['id']}/blocks"
    assert len(http.get(at, params={"ids": ",".join(["3"] * 64)}).json()["data"]) == 64
    assert "65 blocks" in error_of(http.get(at, params={"ids": ",".join(["3"] * 65)}), 400)["message"]
    error = error_of(http.get(f"{PATH}/scope_other/blocks?ids=0"), 404)
    assert error["code"] == "run_not_found"
    assert "scope_other" in error["message"]


@pytest.mark.parametrize(
    ("fields", "words", "param"),
    [
        ({}, "either messages or prompt", "messages"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "not both", "messages"),
        ({"prompt": "x", "max_tokens": 257}, "max_tokens is 257; the microscope takes an integer from", "max_tokens"),
        ({"prompt": "x", "max_tokens": -1}, "max_tokens is -1", "max_tokens"),
        ({"prompt": "x", "max_completion_tokens": 1000}, "1000", "max_tokens"),
        ({"prompt": "x", "n": 2}, "n is 2", "n"),
        ({"prompt": "x", "temperature": 3}, "temperature is 3", "temperature"),
        ({"prompt": ["x"]}, "prompt is", "prompt"),
        ({"prompt": ""}, "empty", "prompt"),
        ({"messages": [{"role": "poet", "content": "x"}]}, "messages.0.role", "messages.0.role"),
        ({"prompt": "x" * 2000}, "tokens", None),
    ],
)
def test_what_it_refuses(http: httpx.Client, fields: dict[str, Any], words: str, param: str | None) -> None:
    error = error_of(http.post(PATH, json=fields), 400)
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]
    assert param is None or error["param"] == param


def test_another_model(http: httpx.Client) -> None:
    assert error_of(http.post(PATH, json={"model": "big", "prompt": "x"}), 404)["code"] == "model_not_found"


def test_a_conversation_is_written_as_the_chat_endpoint_writes_it() -> None:
    said = "<mm:think>Which one?</mm:think>Bänke."
    model, records = ScriptedModel(lambda prompt: said), list[UsageRecord]()
    with (
        live_server(model, template=None, pages=200, observers=[records.append]) as server,
        httpx.Client(base_url=server.url, timeout=30) as http,
    ):
        body = {"messages": [{"role": "user", "content": "Hello"}], "thinking": {"type": "enabled"}, "temperature": 0}
        chat = http.post("/v1/chat/completions", json={**body, "model": "tiny"}).json()
        run = http.post(PATH, json=body).json()
        generated = said.removeprefix("<mm:think>")
        assert "".join(t["text"] for t in run["tokens"]) == generated
        assert run["tokens"][-1] | {"selections": []} == {
            "index": len(generated.encode()),
            "token": EOS,
            "text": "",
            "selections": [],
        }
        assert all(len(t["selections"]) == 2 for t in run["tokens"])
        assert model.prompts[0] == model.prompts[-1]
        assert run["finish_reason"] == "stop"
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert run["usage"][name] == chat["usage"][name]
        assert records[1].endpoint == PATH
        assert (records[1].status, records[1].completion_tokens) == ("ok", run["usage"]["completion_tokens"])


def test_it_is_in_the_document_of_routes(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert {"post"} == set(paths[PATH])
    assert {"get"} == set(paths[PATH + "/{id}/blocks"])
    assert not any(path.startswith("/web") for path in paths)


def test_the_gate_is_asked() -> None:
    class Shut:
        def admit(self, caller: Caller, tokens: int, longest: int | None = None) -> Ticket:
            raise ApiError(429, f"no room for {tokens} tokens", type="rate_limit_error", code="rate_limit_exceeded")

        def headers(self, caller: Caller) -> dict[str, str]:
            return {}

    with live_server(gate=Shut()) as shut, httpx.Client(base_url=shut.url) as http:
        assert "364 tokens" in error_of(http.post(PATH, json={"prompt": PROMPT, "max_tokens": 4}), 429)["message"]


def test_leaving_early_frees_the_pages(server: LiveServer, http: httpx.Client) -> None:
    server.model.seconds = 0.01
    with http.stream("POST", PATH, json={"prompt": PROMPT, "max_tokens": 256, "stream": True}) as response:
        next(response.iter_lines())
        wait_for(lambda: server.engine.has_work)
    server.wait_until_idle()


def test_a_failing_step_ends_the_stream_with_its_error(server: LiveServer, http: httpx.Client) -> None:
    def explode(tokens: list[int]) -> None:
        raise RuntimeError("a defect in a kernel")

    server.model.before = explode
    events = events_of(http.post(PATH, json={"prompt": PROMPT, "stream": True}).text)
    assert "a defect in a kernel" in events[-1]["error"]["message"]
    assert "[DONE]" not in events
    error_of(http.post(PATH, json={"prompt": PROMPT}), 500)


def test_it_needs_a_key_for_chat_and_shows_blocks_to_its_organisation_only() -> None:
    class Keys:
        async def caller(self, token: str) -> Caller:
            organisation, scope = token.split("-")
            return Caller(token, organisation, frozenset({scope}))

    with live_server(authenticator=Keys()) as server, httpx.Client(base_url=server.url) as http:

        def bearer(token: str) -> dict[str, str]:
            return {"authorization": f"Bearer {token}"}

        body = {"prompt": PROMPT, "max_tokens": 1, "temperature": 0}
        error_of(http.post(PATH, json=body), 401)
        assert "'chat'" in error_of(http.post(PATH, json=body, headers=bearer("ours-files")), 403)["message"]
        run = http.post(PATH, json=body, headers=bearer("ours-chat")).json()
        at = f"{PATH}/{run['id']}/blocks?ids=0"
        assert http.get(at, headers=bearer("ours-chat")).json()["data"][0]["text"] == PROMPT[:16]
        error_of(http.get(at), 401)
        error_of(http.get(at, headers=bearer("ours-files")), 403)
        assert error_of(http.get(at, headers=bearer("theirs-chat")), 404)["code"] == "run_not_found"


def tokens_of(size: int) -> array[int]:
    return array("i", [7] * size)


def test_records_are_bounded_by_number_size_and_age() -> None:
    now = [0.0]
    records = Records(count=3, tokens=100, seconds=60, clock=lambda: now[0])
    first, second, third = (records.add(ANONYMOUS, tokens_of(20), []) for _ in range(3))
    records.add(ANONYMOUS, tokens_of(20), [])
    assert len(records) == 3
    with pytest.raises(ApiError) as caught:
        records.get(first.id, ANONYMOUS)
    assert caught.value.status == 404
    assert records.get(second.id, ANONYMOUS) is second

    large = records.add(ANONYMOUS, tokens_of(1000), [])
    assert len(records) == 1, "one that is larger than the limit stands alone"
    assert records.get(large.id, ANONYMOUS) is large
    small = records.add(ANONYMOUS, tokens_of(10), [])
    assert len(records) == 1
    now[0] = 60
    assert records.get(small.id, ANONYMOUS) is small
    now[0] = 61
    assert len(records) == 0
    assert third.tokens(18, 30) == [7, 7]


def test_a_record_is_its_owners() -> None:
    records = Records()
    ours = Caller("key-1", "ours")
    record = records.add(ours, tokens_of(3), [1, 2])
    assert records.get(record.id, Caller("key-2", "ours")) is record
    for other in (ANONYMOUS, Caller("key-1", "theirs")):
        with pytest.raises(ApiError) as caught:
            records.get(record.id, other)
        assert caught.value.code == "run_not_found"
    assert record.tokens(2, 4) == [7, 1]
    assert record.tokens(0, 99) == [7, 7, 7, 1, 2]
